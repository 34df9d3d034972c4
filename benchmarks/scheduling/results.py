"""What a scenario found, and how it is shown."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from statistics import fmean, stdev

import numpy as np

from scheduling.workload import Floats


@dataclass
class Row:
    """One policy under one condition, over all seeds.

    Attributes:
        case: The condition, e.g. "rho 0.8".
        policy: Who decides.
        ratios: What it took, as a multiple of the bound: one a seed.
        goal: What the ratio should be at most, or None.
        at_least: Whether it should be that at least.
        figures: Further figures by name, e.g. p50 and p99 in seconds: one a seed.
    """

    case: str
    policy: str
    ratios: list[float] = field(default_factory=list)
    goal: float | None = None
    at_least: bool = False
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, ratio: float, **figures: float) -> None:
        """One more seed."""
        self.ratios.append(ratio)
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    @property
    def ratio(self) -> float:
        """The mean over the seeds."""
        return fmean(self.ratios)

    @property
    def error(self) -> float:
        """The mean's standard error: other seeds would give another mean, about so far off."""
        many = len(self.ratios)
        return stdev(self.ratios) / math.sqrt(many) if many > 1 else math.nan

    @property
    def worst(self) -> float:
        """The worst seed's."""
        return min(self.ratios) if self.at_least else max(self.ratios)

    @property
    def verdict(self) -> str:
        """Whether the goal is reached."""
        if self.goal is None:
            return ""
        # A goal of two decimals is reached by what rounds to it.
        off = (round(self.ratio, 2) - self.goal) * (-1 if self.at_least else 1)
        return "reached" if off <= 1e-9 else "missed"


@dataclass
class Result:
    """A scenario's table.

    Attributes:
        name: "S1" to "S8".
        title: What it is about.
        unit: What the ratios are multiples of.
        rows: The table.
        remarks: What a reader should know.
    """

    name: str
    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def row(self, case: str, policy: str, goal: float | None = None, *, at_least: bool = False) -> Row:
        """The row of that case and policy, made when it is not there."""
        for row in self.rows:
            if (row.case, row.policy) == (case, policy):
                return row
        self.rows.append(Row(case, policy, goal=goal, at_least=at_least))
        return self.rows[-1]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells."""
        names = list(dict.fromkeys(name for row in self.rows for name in row.figures))
        header = ["case", "policy", self.unit, "+-", "worst seed", *names, "goal", ""]
        cells = []
        for row in self.rows:
            figures = [_short(fmean(row.figures[n])) if n in row.figures else "" for n in names]
            ratios = [_short(row.ratio), _short(row.error), _short(row.worst)]
            goal = "" if row.goal is None else f"{row.goal:g}"
            cells.append([row.case, row.policy, *ratios, *figures, goal, row.verdict])
        return header, cells


def _short(value: float) -> str:
    if value != value:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def percentiles(latencies: Floats) -> dict[str, float]:
    """The middle and the far end, in seconds."""
    return {
        "p50 s": float(np.percentile(latencies, 50)),
        "p99 s": float(np.percentile(latencies, 99)),
    }


def progress(*words: object) -> None:
    """Say on stderr how far it is."""
    print(*words, file=sys.stderr, flush=True)
