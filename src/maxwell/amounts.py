"""Amounts in the words a person would use."""

from __future__ import annotations

import math


def money(usd: float) -> str:
    """An amount of US dollars, never rounded to nothing: `$0`, `$0.0021`, `$12.30`."""
    if usd == 0:
        return "$0"
    if abs(usd) >= 1:
        return f"${usd:,.2f}"
    whole, _, decimals = f"{float(f'{usd:.3g}'):.10f}".rstrip("0").partition(".")
    return f"${whole}.{decimals:0<2}"


def duration(seconds: float) -> str:
    """A time span: `45 s`, `12 min`, `3 h 10 min`; rounded up, so that nobody comes too early."""
    whole = math.ceil(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(math.ceil(whole / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def one_line(text: str) -> str:
    """`text` with every run of white space as one space."""
    return " ".join(text.split())
