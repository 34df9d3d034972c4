"""The user's databases: SQLite files for all of that user's processes, and who those are."""
