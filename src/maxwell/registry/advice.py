"""What is allowed in a registry but probably not meant."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from maxwell.errors import Problem, RegistryError
from maxwell.registry.endpoints import OPENAI_HOST
from maxwell.registry.specs import LLMSpec, Registry, RegistryFile, Spec
from maxwell.registry.wording import shown

_LOCAL_SUFFIXES = (".local", ".localhost", ".lan", ".internal", ".home.arpa", ".ts.net")
# Dearer than every published price by far: such a number is usually meant per million tokens.
_STEEP_PER_1K = 2.0


def advise(registry: Registry | RegistryFile) -> list[Problem]:
    """Warnings about a valid registry, in file order, and about its lock. Their line and column are 0."""
    kinds: tuple[tuple[str, tuple[Spec, ...]], ...] = (
        ("llms", registry.llms),
        ("embeddings", registry.embeddings),
        ("rerankers", registry.rerankers),
    )
    found = [
        Problem(f"{kind}[{index}]", f"{shown(spec.name)} {message}")
        for kind, specs in kinds
        for index, spec in enumerate(specs)
        for message in _about(spec)
    ]
    return found + (_about_lock(registry) if isinstance(registry, Registry) else [])


def _about_lock(registry: Registry) -> list[Problem]:
    """Where the lock does not fit the registry; nothing where there is none."""
    from maxwell.registry.lock import lock_file, misfits, read_lock

    if registry.path is None:
        return []
    try:
        lock = read_lock(lock_file(registry.path))
    except RegistryError as error:
        return [Problem("", f"its lock {problem.message}") for problem in error.problems]
    return [] if lock is None else misfits(lock, registry)


def is_local(api_base: str) -> bool:
    """Whether a URL's host is this machine or on a private network."""
    host = (urlsplit(api_base).hostname or "").rstrip(".")
    try:
        return not ip_address(host.partition("%")[0]).is_global
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_SUFFIXES)


def _about(spec: Spec) -> list[str]:
    said = []
    parts = urlsplit(spec.api_base)
    local = is_local(spec.api_base)
    if parts.scheme == "https" and not local and spec.is_free:
        said.append(
            f"has no price, so calls to {parts.hostname} count as free; "
            "add cost_per_1k_tokens if that host charges for them"
        )
    if parts.scheme == "http" and parts.hostname == OPENAI_HOST:
        said.append("speaks http:// to OpenAI, so no key is sent; write https://")
    elif parts.scheme == "http" and not local and spec.api_key_env:
        said.append(f"sends its key to {parts.hostname} unencrypted; write https://")
    if isinstance(spec, LLMSpec) and spec.tier == "free" and not spec.is_free:
        said.append('has tier "free" and a price; choosing by tier="free" would spend money')
    if steep := [price for price in _prices(spec) if price > _STEEP_PER_1K]:
        said.append(f"costs ${steep[0]:g} per 1000 tokens; is that the price of a million?")
    return said


def _prices(spec: Spec) -> tuple[float, ...]:
    if isinstance(spec, LLMSpec):
        return spec.price_prompt, spec.price_completion, spec.price_cached
    return (spec.price_prompt,)
