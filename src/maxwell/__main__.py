"""`python -m maxwell`."""

from __future__ import annotations

from maxwell.cli import main

main()
