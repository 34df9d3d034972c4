"""Draws a scenario's table: Maxwell in colour, everybody else in grey, the bound as a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from scheduling.results import Result, Row

OURS, OTHERS, INK, GOAL = "#0b6e4f", "#9aa5b1", "#3d4852", "#c0392b"
NAMES = {
    "S1": "oracle",
    "S2": "burst",
    "S3": "poisson",
    "S4": "herd",
    "S5": "drift",
    "S6": "faults",
    "S7": "budget",
    "S8": "batch",
}
MARKS = "osD^vPX*<>"


def draw(result: Result, directory: Path) -> Path:
    """Write the scenario's figure into `directory` as SVG."""
    style = {
        "svg.fonttype": "none",  # text stays text: small, and searchable
        "svg.hashsalt": "scheduling",  # the same figures give the same file
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with mpl.rc_context(style):
        cases = list(dict.fromkeys(row.case for row in result.rows))
        figure, axes = plt.subplots(figsize=(7.2, 3.9 if len(cases) > 1 else 2.6), layout="constrained")
        if len(cases) > 2 and result.name != "S1":
            _lines(axes, result, cases)
        else:
            _bars(axes, result, cases)
        figure.suptitle(f"{result.name}  {result.title}", x=0.01, ha="left", fontsize=10)
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"scheduling-{result.name.lower()}-{NAMES[result.name]}.svg"
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
    return path


def _lines(axes: Any, result: Result, cases: list[str]) -> None:
    """A line for each policy over the cases."""
    latest = {row.policy: row.ratio for row in result.rows}
    policies = sorted(latest, key=lambda policy: -latest[policy])  # the key stands in the order of the lines
    for i, policy in enumerate(policies):
        rows = [row for row in result.rows if row.policy == policy and row.ratio == row.ratio]
        where = [cases.index(row.case) for row in rows]
        ours = policy.startswith("Maxwell")
        axes.plot(
            where,
            [row.ratio for row in rows],
            color=OURS if ours else OTHERS,
            linewidth=2.0 if ours else 1.0,
            linestyle="-" if policy in ("Maxwell", "Maxwell, calls") or not ours else "--",
            marker=MARKS[i % len(MARKS)],
            markersize=4,
            label=policy,
            zorder=3 if ours else 2,
        )
    goals = {row.case: row.goal for row in result.rows if row.goal is not None}
    for case, goal in goals.items():
        at = cases.index(case)
        axes.plot([at - 0.15, at + 0.15], [goal, goal], color=GOAL, linewidth=1.5, zorder=4)
    axes.plot([], [], color=GOAL, linewidth=1.5, label="goal")
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":", label="lower bound")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(cases)), cases)
    axes.set_ylabel(result.unit)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _bars(axes: Any, result: Result, cases: list[str]) -> None:
    """A bar for each policy, the cases one below the other."""
    labels: list[str] = []
    where: list[int] = []
    rows: list[Row] = []
    for case in cases:
        if len(cases) > 1:
            labels.append(f"{case}:")
        for row in result.rows:
            if row.case == case:
                where.append(len(labels))
                labels.append(row.policy)
                rows.append(row)
    colours = [OURS if row.policy.startswith("Maxwell") else OTHERS for row in rows]
    bars = axes.barh(where, [row.ratio for row in rows], color=colours, height=0.7)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    axes.axvline(1.0, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(labels)), labels)
    for i, tick in enumerate(axes.get_yticklabels()):
        tick.set_fontweight("normal" if i in where else "bold")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set_xlabel(result.unit)
