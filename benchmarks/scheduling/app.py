"""Command line: run scenarios, print their tables, draw their figures."""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCENARIOS = {
    "S1": ("s1_oracle", "1,2,3"),
    "S2": ("s2_burst", "1,2,3,4,5,6,7,8"),
    "S3": ("s3_poisson", "1,2,3"),
    "S4": ("s4_herd", "1,2,3"),
    "S5": ("s5_drift", "1,2,3"),
    "S6": ("s6_faults", "1,2,3"),
    "S7": ("s7_budget", "1,2,3,4,5"),
    "S8": ("s8_batch", "1,2,3"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; 1 where a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="S1..S8", help="which; all when none is named")
    parser.add_argument("--seeds", help="e.g. 1,2,3; each scenario has its own when absent")
    parser.add_argument("--json", action="store_true", help="print one JSON object a scenario")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="draw the figures into DIR, too")
    given = parser.parse_args(arguments)
    names = [name.upper() for name in given.scenarios] or list(SCENARIOS)
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {unknown[0]}; there is {', '.join(SCENARIOS)}")
    missed = False
    for name in names:
        module, usual = SCENARIOS[name]
        seeds = [int(seed) for seed in (given.seeds or usual).split(",")]
        began = time.monotonic()
        result = importlib.import_module(f"scheduling.{module}").run(seeds)
        seconds = time.monotonic() - began
        print(_as_json(result, seeds) if given.json else _as_text(result, seeds, seconds), flush=True)
        if given.figures is not None:
            from scheduling.figures import draw

            draw(result, given.figures)
        missed = missed or any(row.verdict == "missed" for row in result.rows)
    return int(missed)


def _as_json(result: Any, seeds: Sequence[int]) -> str:
    rows = [
        {
            "case": row.case,
            "policy": row.policy,
            "ratio": row.ratio,
            "ratios": row.ratios,
            "error": row.error if len(row.ratios) > 1 else None,
            "goal": row.goal,
            "verdict": row.verdict,
            **{name: [None if v != v else v for v in values] for name, values in row.figures.items()},
        }
        for row in result.rows
    ]
    return json.dumps(
        {
            "name": result.name,
            "title": result.title,
            "unit": result.unit,
            "seeds": seeds,
            "rows": rows,
            "remarks": result.remarks,
        }
    )


def _as_text(result: Any, seeds: Sequence[int], seconds: float) -> str:
    header, cells = result.table()
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    numbers = ",".join(map(str, seeds))
    where = f"Python {platform.python_version()}, {sys.platform}"
    lines = [f"\n{result.name}: {result.title}  [seeds {numbers}; {seconds:.0f} s; {where}]"]
    for row in [header, ["-" * width for width in widths], *cells]:
        words = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        words[:2] = [cell.ljust(width) for cell, width in zip(row[:2], widths, strict=False)]
        lines.append("  ".join(words).rstrip())
    return "\n".join([*lines, *result.remarks])
