"""What calls teach about an entry: how fast it reads and writes, how soon it begins, how much. Pure.

Every finished call is a `Sample`; `learn` folds it into what is `Learned`; `speeds_of` says what to expect.
Until something was observed that is what the registry declares.
"""

from __future__ import annotations

from maxwell.speed.learned import (
    LIKELY_LOAD,
    LIKELY_WAKE,
    Learned,
    Seen,
    Speeds,
    from_json,
    learn,
    speeds_of,
    to_json,
)
from maxwell.speed.sample import Sample, sizes_of

__all__ = [
    "LIKELY_LOAD",
    "LIKELY_WAKE",
    "Learned",
    "Sample",
    "Seen",
    "Speeds",
    "from_json",
    "learn",
    "sizes_of",
    "speeds_of",
    "to_json",
]
