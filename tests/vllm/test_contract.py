"""The contract of tests/contract/families with a real vLLM."""

from __future__ import annotations

from families.fixtures import meeting, pytest_generate_tests
from families.topics import asked_of
from families.vllm_world import WORLDS

__all__ = ["meeting", "pytest_generate_tests"]

globals().update(asked_of(WORLDS))
