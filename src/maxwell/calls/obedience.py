"""Who was seen to ignore constraints: a server that writes what it likes with a 200 costs time and money."""

from __future__ import annotations

from msgspec import Struct

from maxwell.types import Constraint

ENOUGH = 2  # replies in a row that broke their constraint, with not one before that obeyed
FORGET_SECONDS = 600.0  # after so long it is tried again: it may have been mended


class _Record(Struct):
    obeyed: int = 0
    broken: int = 0
    at: float = 0.0


class Obedience:
    """What replies of each entry were like, by kind of constraint, in this process."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], _Record] = {}

    def note(self, name: str, constraint: Constraint, *, obeyed: bool, now: float) -> None:
        """A whole reply of that entry was judged at `now`, on the monotonic clock."""
        record = self._records.setdefault((name, constraint.kind), _Record())
        if obeyed:
            record.obeyed += 1
        else:
            record.broken, record.at = record.broken + 1, now

    def words(self, name: str, constraint: Constraint, now: float) -> str:
        """Why the entry is not to be asked while there is another one, or ""."""
        record = self._records.get((name, constraint.kind))
        if record is None or record.obeyed or record.broken < ENOUGH or now - record.at > FORGET_SECONDS:
            return ""
        kind = constraint.kind.replace("_", " ")
        return f"ignored the constraint in {record.broken} of {record.broken} replies ({kind})"
