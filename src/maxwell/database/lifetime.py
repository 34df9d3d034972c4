"""What becomes of open databases when the process forks or ends."""

from __future__ import annotations

import logging
import os
import weakref
from typing import Protocol

from maxwell.ending import at_end
from maxwell.errors import LedgerError

log = logging.getLogger("maxwell")


class Open(Protocol):
    """Something that is open in one process."""

    def close(self) -> None:
        """Finish and close. Raises `LedgerError`."""

    def before_fork(self) -> None:
        """Be in a state that can be copied, until `after_fork`."""

    def after_fork(self) -> None:
        """Go on in the parent."""

    def start_afresh(self) -> None:
        """Begin with nothing open, in the child."""


# It keeps none alive. The value is whether it is told first.
_all: dict[weakref.ref[Open], bool] = {}
_is_ending = False


def watch(one: Open, *, first: bool = False) -> None:
    """Tell `one` of every fork, and of the end.

    Args:
        one: What is open.
        first: Who uses it may come to use one that is not `first` meanwhile, never the other way round.
    """
    _all[weakref.ref(one, _forget)] = first


def _forget(reference: weakref.ref[Open]) -> None:
    _all.pop(reference, None)


def is_ending() -> bool:
    """Whether the end has been told: from then on nobody writes for others."""
    return _is_ending


def _alive() -> list[Open]:
    """In one order, so that threads that fork, or use several of them, never wait for each other."""
    found = [(one, first) for reference, first in _all.copy().items() if (one := reference()) is not None]
    return [one for one, first in sorted(found, key=lambda entry: (not entry[1], id(entry[0])))]


def _end() -> None:
    global _is_ending
    _is_ending = True
    for one in _alive():
        try:
            one.close()
        except LedgerError as error:
            log.warning("usage could not be written down: %s", error)


def _before_fork() -> None:
    for one in _alive():
        one.before_fork()


def _in_parent() -> None:
    for one in _alive():
        one.after_fork()


def _in_child() -> None:
    global _is_ending
    _is_ending = False
    for one in _alive():
        one.start_afresh()


at_end(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
