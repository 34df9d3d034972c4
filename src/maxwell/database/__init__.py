"""The user's database: one SQLite file for all of that user's processes, and who they are."""
