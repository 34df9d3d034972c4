"""Where an entry lives and which key opens it.

A key belongs to a host: `OPENAI_API_KEY` goes to https://api.openai.com and nowhere else, any other host gets
one only through its entry's `api_key_env`, and that only from a trusted registry (see `trust`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from maxwell.registry.specs import Registry, Spec

OPENAI_HOST = "api.openai.com"
_VERSION = re.compile(r"/v\d+(?:alpha|beta)?\d*(?:/|$)")


@lru_cache(maxsize=1024)
def root(api_base: str) -> str:
    """The server's root URL: `api_base` without trailing slashes and without one trailing `/v1`.

    Prefixes in front of it stay: `https://host/llm/v1/` gives `https://host/llm`.
    """
    return api_base.rstrip("/").removesuffix("/v1").rstrip("/")


@lru_cache(maxsize=1024)
def openai_url(api_base: str, path: str) -> str:
    """The URL of one of OpenAI's routes, such as `/chat/completions`, at `api_base`.

    Routes lie under `/v1`, except where the base itself names another version of an API:
    `https://host/api/paas/v4` and `https://host/v1beta/openai` are bases as they stand.
    """
    base = root(api_base)
    return base + path if _VERSION.search(urlsplit(base).path) else f"{base}/v1{path}"


def is_openai(api_base: str) -> bool:
    """Whether `api_base` is OpenAI's own API, over TLS."""
    parts = urlsplit(api_base)
    return parts.scheme == "https" and parts.hostname == OPENAI_HOST


def api_key(spec: Spec, registry: Registry, environ: Mapping[str, str]) -> str | None:
    """The key to send to `spec`'s host, or None.

    None also where the registry is not trusted or the variable is unset; `key_problem` says which.
    """
    if spec.api_key_env is not None:
        return (environ.get(spec.api_key_env) or None) if registry.trusted else None
    return (environ.get("OPENAI_API_KEY") or None) if is_openai(spec.api_base) else None


def key_problem(spec: Spec, registry: Registry, environ: Mapping[str, str]) -> str | None:
    """Why `spec` cannot be called for want of a key, or None when it can."""
    if spec.api_key_env is not None:
        if not registry.trusted:
            return (
                f"this project registry may not use api_key_env until you run `maxwell trust {registry.path}`"
            )
        if not environ.get(spec.api_key_env):
            return f"environment variable {spec.api_key_env} is not set"
    elif is_openai(spec.api_base) and not environ.get("OPENAI_API_KEY"):
        return "environment variable OPENAI_API_KEY is not set"
    key = api_key(spec, registry, environ) or ""
    if not (key.strip().isascii() and key.strip().isprintable()):
        name = spec.api_key_env or "OPENAI_API_KEY"
        return f"environment variable {name} holds a character that no HTTP header may hold; set it anew"
    return None
