"""Pictures for a prompt, in the form every server takes."""

from __future__ import annotations

from typing import Any


def image_part(image: Any) -> dict[str, Any]:
    """A content part of a chat message for one picture."""
    raise NotImplementedError
