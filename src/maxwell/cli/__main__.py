"""`python -m maxwell.cli`."""

from __future__ import annotations

from maxwell.cli import main

main()
