from __future__ import annotations

from collections.abc import Iterator

import pytest

for topics in ("constraints", "errors", "numbers", "replies", "servers"):
    pytest.register_assert_rewrite(f"wire.about_{topics}")  # before they are imported
pytest.register_assert_rewrite("wire.asking", "wire.topics")

from wire.fixtures import meeting, pytest_generate_tests  # noqa: E402
from wire.llamacpp_world import Llamas  # noqa: E402

__all__ = ["llamas", "meeting", "pytest_generate_tests"]


@pytest.fixture(scope="session")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Llamas]:
    servers = Llamas(tmp_path_factory.mktemp("llamas"))
    yield servers
    servers.close()
