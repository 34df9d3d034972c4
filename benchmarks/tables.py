"""What the benchmarks share: repeated measurement, and one table a benchmark, for people or as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# LiteLLM fetches a list of prices when it is imported; benchmarks leave this machine alone.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"


@dataclass(frozen=True)
class Spread:
    """A measured quantity: median and the middle half."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.median)} ({_short(self.low)}-{_short(self.high)})"


def _short(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def repeat(work: Callable[[], float], rounds: int) -> Spread:
    """Call `work` (which returns what it measured) once to warm up and `rounds` times for the record."""
    work()
    return spread([work() for _ in range(rounds)])


def options(description: str | None) -> argparse.Namespace:
    """The command line every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it runs")
    return parser.parse_args()


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], *, as_json: bool) -> None:
    """Print one table, the machine named above it."""
    if as_json:
        records = [dict(zip(header, [_plain(cell) for cell in row], strict=True)) for row in rows]
        print(json.dumps({"title": title, "python": platform.python_version(), "rows": records}))
        return
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
    print(f"\n{title}  [Python {platform.python_version()}, {sys.platform}]; median (middle half)")
    for row in [list(header), ["-" * width for width in widths], *cells]:
        first, *rest = row
        print(
            "  ".join([first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(rest, widths[1:], strict=True))])
        )


def _plain(cell: object) -> object:
    if isinstance(cell, Spread):
        return {"median": cell.median, "low": cell.low, "high": cell.high}
    return cell


def ratio(value: float, bound: float) -> str:
    """`value` as a multiple of `bound`."""
    return f"{value / bound:.2f} x"
