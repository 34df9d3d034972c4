"""llama.cpp servers on this machine: start one, describe it for the registry, write tiny models for trials.

Needs the extra `local`.
"""

from __future__ import annotations

from maxwell.errors import MaxwellError

__all__ = ["MissingExtraError"]


class MissingExtraError(MaxwellError, ImportError):
    """A library of the extra `local` is not installed."""
