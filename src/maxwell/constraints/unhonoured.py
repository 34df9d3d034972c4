"""The refusal to compile a constraint for a server that could not hold its text to it."""

from __future__ import annotations


class Unhonoured(ValueError):
    """A server of this family cannot hold its text to this constraint; the message says why, and where."""
