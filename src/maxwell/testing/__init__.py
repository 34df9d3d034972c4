"""Test your own code without a model: a fake LLM server that speaks real HTTP, a clock that obeys, fixtures.

    from maxwell.testing import FakeServer, faults

    with FakeServer("llamacpp", reply="Hello!") as server:
        server.fail(faults.Cut(after=3))
        ...

pytest fixtures are in `maxwell.testing.fixtures`; switch them on with
`pytest_plugins = ["maxwell.testing.fixtures"]` in a conftest.py. See docs/testing.md.
"""

from __future__ import annotations

from maxwell.testing import faults
from maxwell.testing.clock import FakeClock
from maxwell.testing.server import FakeServer
from maxwell.testing.state import Recorded

__all__ = ["FakeClock", "FakeServer", "Recorded", "faults"]
