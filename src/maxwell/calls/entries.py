"""One declared LLM or embedding in use: where it lives, how it is spoken to, what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maxwell.backends import get_backend
from maxwell.backends.base import Backend
from maxwell.decision import Candidate
from maxwell.health import Endpoint, Health
from maxwell.learning import key_of
from maxwell.registry.endpoints import api_key, key_problem, root
from maxwell.registry.specs import LLMSpec, Registry, Spec
from maxwell.speed import Learned, Speeds, speeds_of
from maxwell.types import PLAIN, Features

SPEEDS_SECONDS = 30.0  # what to expect is reckoned anew this often, though nothing was learned


class Entry:
    """One declared LLM or embedding in use: its spec, where it lives, how it is spoken to.

    Attributes:
        spec: The declaration.
        index: Its place in the registry.
        endpoint: Its server, with the key this user sends.
        key_problem: Why there is no key although one is needed, or None.
        learned_as: What is learned of it is kept under this key.
    """

    __slots__ = (
        "_declared",
        "_latest",
        "_load_learned",
        "_speeds",
        "_watches",
        "endpoint",
        "index",
        "key_problem",
        "learned_as",
        "spec",
    )

    def __init__(self, spec: Spec, index: int, registry: Registry, environ: Mapping[str, str]) -> None:
        self.spec = spec
        self.index = index
        self.endpoint = Endpoint(root(spec.api_base), spec.backend, api_key(spec, registry, environ))
        self.key_problem = key_problem(spec, registry, environ)
        self.learned_as = key_of(spec)
        self._load_learned: float | None = None
        self._watches = False  # whether it ever was looked at
        self._declared = get_backend(spec.backend or "openai")
        # What was known and how the scheduler saw it, replaced as one so that threads never mix two.
        self._latest: tuple[Health | None, Speeds | None, Candidate] | None = None
        self._speeds: tuple[Learned | None, Learned | None, str, float, Speeds | None]
        self._speeds = (None, None, "", 0.0, None)

    def backend(self, health: Health | None = None) -> Backend:
        """How to speak to it: as what its server says it is, else as declared."""
        if health is None or not health.family:
            return self._declared
        return get_backend(self.spec.backend or "openai", family=health.family, version=health.version)

    def cannot(self, features: Features, health: Health | None) -> str:
        """Why it cannot do what a call asks beyond writing text, in a few words; "" = it can."""
        if features is PLAIN:
            return ""
        if not isinstance(self.spec, LLMSpec):
            return "is no LLM"
        if features.images and not self.spec.capabilities.vision:
            return "takes no images (capabilities.vision)"
        if features.images and health is not None and health.vision is False:
            return "its server takes no images, whatever is declared"
        return self.backend(health).cannot(self.spec, features)

    def blocked_by(self, health: Health | None) -> tuple[str, str]:
        """Why it cannot be used although its server may be up: (reason, words), or two empty strings."""
        if self.key_problem is not None:
            return "key", self.key_problem
        if health is None:
            return "", ""
        backend = self.backend(health)
        if backend.no_chat and isinstance(self.spec, LLMSpec):
            return "model_missing", f"{backend.no_chat} (it is {backend.family})"
        if not health.models or backend.serves(self.spec.model, health.models) is not None:
            return "", ""
        if backend.answers_any_name and len(health.models) == 1:
            return "", ""
        served = ", ".join(m.id for m in health.models[:3]) + (", ..." if len(health.models) > 3 else "")
        return "model_missing", f"{self.endpoint.root} does not serve {self.spec.model}; it serves {served}"

    @property
    def declared_context(self) -> int:
        """Most tokens of one request, as declared."""
        spec = self.spec
        return spec.capabilities.max_context if isinstance(spec, LLMSpec) else spec.max_context

    def context(self, health: Health | None) -> int:
        """Most tokens of one request: as declared, or as the server tells when that is less."""
        if health is None:
            return self.declared_context
        served = self.backend(health).serves(self.spec.model, health.models)
        told = (served.context if served else None) or health.context
        return min(self.declared_context, told or self.declared_context)

    def slots(self, health: Health | None, speeds: Speeds | None = None) -> int | None:
        """Requests that its server works on at once: as declared or told, the fewer, else learned."""
        declared = self.spec.capabilities.slots if isinstance(self.spec, LLMSpec) else None
        told = None if health is None else health.slots
        if declared is not None and told is not None:
            return min(declared, told)
        return declared or told or (None if speeds is None else speeds.slots)

    def is_counted(self, health: Health | None) -> bool:
        """Whether it matters how many requests its server has: a cloud takes any number."""
        return self.backend(health).family != "openai" or self.slots(health) is not None

    def speeds(
        self, learned: Learned | None, usual: Learned | None, now: float, task: str = ""
    ) -> Speeds | None:
        """What to expect of it at `now` by what was learned of it and of all entries; None = nothing was."""
        if not isinstance(self.spec, LLMSpec) or (learned is None and usual is None):
            return None
        known = self._speeds
        is_old = not 0.0 <= now - known[3] <= SPEEDS_SECONDS
        if known[0] is not learned or known[1] is not usual or known[2] != task or is_old:
            speeds = speeds_of(learned or Learned(), self.spec, task, usual, now)
            self._speeds = known = (learned, usual, task, now, speeds)
        return known[4]

    def load_to_learn(self, health: Health | None) -> float | None:
        """Seconds that its server took to load, as health checks saw it; None = nothing new. Told once.

        A loading that was over when the entry was first looked at is none of its news.
        """
        took = None if health is None else health.loaded_in
        if took == self._load_learned:
            return None
        self._load_learned = took
        return took

    def refresh(self, health: Health | None, speeds: Speeds | None = None) -> Candidate:
        """This LLM as the scheduler is to see it. The value is shared: replace it, never change it."""
        latest = self._latest
        if latest is not None and latest[1] is speeds and _says_the_same(latest[0], health):
            return latest[2]
        if health is not None and not self._watches:
            self._load_learned, self._watches = health.loaded_in, True
        spec = self.spec
        assert isinstance(spec, LLMSpec)
        reason, words = self.blocked_by(health)
        candidate = Candidate(
            spec=spec,
            index=self.index,
            state="unknown" if health is None else health.state,
            detail=words or ("no answer to the health check" if health is None else health.detail),
            blocked=reason or None,  # type: ignore[arg-type]
            endpoint=self.endpoint.root,
            slots=self.slots(health, speeds),
            context=self.context(health),
            **_expected(speeds),
        )
        self._latest = (health, speeds, candidate)
        return candidate


def _expected(speeds: Speeds | None) -> dict[str, Any]:
    """What was learned, in a candidate's terms; where nothing was observed the declared figures stand."""
    if speeds is None:
        return {}
    seen = speeds.seen
    return {
        "speed": speeds.speed,
        "prefill": speeds.prefill,
        "overhead": speeds.overhead,
        "service": speeds.service if seen.service else 0.0,
        "completion": speeds.completion if seen.completion else None,
        "bytes_per_token": speeds.bytes_per_token,
    }


def _says_the_same(one: Health | None, other: Health | None) -> bool:
    """Whether two states make the same candidate: every successful call renews a state's time and no more."""
    if one is None or other is None:
        return one is other
    return one is other or (
        one.state == other.state
        and one.detail == other.detail
        and one.models is other.models
        and one.context == other.context
        and one.slots == other.slots
        and one.family == other.family
        and one.version == other.version
    )
