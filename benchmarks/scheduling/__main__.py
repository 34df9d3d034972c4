"""Runs the simulator: python -m benchmarks.scheduling S3 --seeds 1,2,3."""

from __future__ import annotations

import sys
from pathlib import Path

# The package goes by its short name everywhere, so that this and the tests mean the same modules.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scheduling.app import main

if __name__ == "__main__":
    sys.exit(main())
