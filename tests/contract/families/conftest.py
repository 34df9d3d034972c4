from __future__ import annotations

from collections.abc import Iterator

import pytest

for topics in ("constraints", "errors", "numbers", "replies", "servers"):
    pytest.register_assert_rewrite(f"families.about_{topics}")  # before they are imported
pytest.register_assert_rewrite("families.asking", "families.topics")

from families.fixtures import meeting, pytest_generate_tests  # noqa: E402
from families.llamacpp_world import Llamas  # noqa: E402

__all__ = ["llamas", "meeting", "pytest_generate_tests"]


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llamas]:
    servers = Llamas(tmp_path_factory.mktemp("llamas"))
    yield servers
    servers.close()
