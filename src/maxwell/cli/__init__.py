"""The command line: `maxwell`. Importing this package costs nothing; `main` loads what the command needs."""

from __future__ import annotations


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        from maxwell.cli.app import cli

        cli.main(prog_name="maxwell")
    except KeyboardInterrupt:  # before or after the commands' own handling
        raise SystemExit(130) from None
