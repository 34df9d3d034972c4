from __future__ import annotations

import pytest

pytest.register_assert_rewrite("wire.topics")

from wire.fixtures import *  # noqa: E402, F403 - the module has to be registered first
