"""The registry file: found, read, explained, edited.

    located = find()                  # or locate(...) with everything passed in
    registry = load(located)          # RegistryError carries every problem of the file

Importing this package loads what reading a registry needs and no more: edits and advice are loaded at their
first use, `jsonschema` and `filelock` by what calls them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from maxwell.registry.load import decode, load
from maxwell.registry.locate import Located, find, global_registry, locate, maxwell_home
from maxwell.registry.schema import schema
from maxwell.registry.specs import (
    Capabilities,
    EmbeddingSpec,
    LLMSpec,
    Registry,
    RegistryFile,
    RerankerSpec,
    Spec,
)
from maxwell.registry.trust import is_trusted, trust

if TYPE_CHECKING:
    from maxwell.registry.advice import advise, is_local
    from maxwell.registry.edit import add_entry, remove_entry, rewrite, set_field

__all__ = [
    "Capabilities",
    "EmbeddingSpec",
    "LLMSpec",
    "Located",
    "Registry",
    "RegistryFile",
    "RerankerSpec",
    "Spec",
    "add_entry",
    "advise",
    "decode",
    "find",
    "global_registry",
    "is_local",
    "is_trusted",
    "load",
    "locate",
    "maxwell_home",
    "remove_entry",
    "rewrite",
    "schema",
    "set_field",
    "trust",
]

_LATE = {
    "add_entry": "edit",
    "advise": "advice",
    "is_local": "advice",
    "remove_entry": "edit",
    "rewrite": "edit",
    "set_field": "edit",
}


def __getattr__(name: str) -> Any:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)
