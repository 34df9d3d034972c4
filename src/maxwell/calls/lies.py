"""What a registry entry declares and its server tells otherwise, with the value to use. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from maxwell.backends import Backend, get_backend
from maxwell.calls.prices import KnownPrice
from maxwell.calls.status import SURELY, is_far_off
from maxwell.health import Health
from maxwell.registry.checks import text_problem
from maxwell.registry.endpoints import is_openai
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Spec
from maxwell.registry.wording import near, path_text
from maxwell.speed import Speeds
from maxwell.types import ServedModel

if TYPE_CHECKING:
    from maxwell.registry.positions import Where

Severity = Literal["fault", "warning", "note"]


class Lie(Struct, frozen=True, kw_only=True):
    """One field of one entry that is not as the server tells.

    Attributes:
        entry: The entry's name.
        where: The field's place in the registry, e.g. `("llms", 2, "capabilities", "max_context")`; the
            entry's own where no single field is wrong.
        declared: What the registry says; None = nothing.
        found: What is true as far as it is known; None = not known.
        words: What is the matter, for people.
        fix: The value to write there; None = that is for a person to decide.
        severity: "fault": calls fail for it. "warning": it is not true. "note": it may well be meant.
    """

    entry: str
    where: Where
    declared: Any = None
    found: Any = None
    words: str
    fix: Any = None
    severity: Severity = "warning"

    @property
    def path(self) -> str:
        """The place as people write it: `llms[2].capabilities.max_context`."""
        return path_text(self.where)

    @property
    def field(self) -> str:
        """The place within the entry: `capabilities.max_context`; "" for the whole entry."""
        return path_text(self.where[2:])


class Template(Struct, frozen=True):
    """What llama.cpp says that a model's chat template can do; None = not told.

    Attributes:
        tools: Whether it knows tools.
        effort: Whether it can be told how hard to think.
    """

    tools: bool | None = None
    effort: bool | None = None


class Facts(Struct, frozen=True, kw_only=True):
    """What was found out about one entry.

    Attributes:
        place: Where the entry stands, e.g. `("llms", 2)`.
        health: What its server told; None = it did not answer.
        measured: What calls showed of its speed; None = nothing yet.
        template: What its chat template can do.
        dimension: Length of the vector that it made; None = it made none.
        normalised: Whether that vector had length 1; None = not known.
        refusal: Why it made no vector although it was asked, or "".
        unasked: Why it was not asked for one although it is up, or "".
        price: What the host charges as published; None = not known, or not looked up.
    """

    place: tuple[str, int]
    health: Health | None = None
    measured: Speeds | None = None
    template: Template = Template()
    dimension: int | None = None
    normalised: bool | None = None
    refusal: str = ""
    unasked: str = ""
    price: KnownPrice | None = None


def lies(spec: Spec, facts: Facts) -> list[Lie]:
    """Every field of `spec` that `facts` contradict, in the order of the registry's documentation."""
    found = [*_of_server(spec, facts), *_of_price(spec, facts.price)]
    return [replace(lie, where=(*facts.place, *lie.where)) for lie in found]


def true_model(spec: Spec, health: Health | None) -> str | None:
    """The name by which the server knows the entry's model; None = that is not known."""
    if health is None or not health.models:
        return None
    served = _backend(spec, health).serves(spec.model, health.models)
    if served is not None:
        is_name = spec.model in (served.id, *served.aliases)
        return spec.model if is_name or _takes_any_name(spec, health) else served.id
    if len(health.models) == 1:
        return _usable(health.models[0].id)
    hit = _nearest(spec.model, health.models)
    # Another model has another price, and a price is never taken from nowhere.
    return hit if spec.is_free else None


def _of_server(spec: Spec, facts: Facts) -> Iterator[Lie]:
    health = facts.health
    if health is not None and health.state in ("up", "asleep"):
        yield from _of_model(spec, health)
        yield from _of_backend(spec, health)
        if isinstance(spec, LLMSpec):
            yield from _of_reply_and_context(spec, health)
        else:
            yield from _of_context(spec, ("max_context",), spec.max_context, _context(spec, health))
    if isinstance(spec, EmbeddingSpec):
        yield from _of_vectors(spec, facts)
    if isinstance(spec, LLMSpec):
        yield from _of_speed(spec, facts.measured)
        yield from _of_abilities(spec, facts)


# --- name and dialect


def _of_model(spec: Spec, health: Health) -> Iterator[Lie]:
    true = true_model(spec, health)
    if not health.models or true == spec.model:
        return
    backend = _backend(spec, health)
    served = backend.serves(spec.model, health.models)
    names = ", ".join(m.id for m in health.models[:3]) + (", ..." if len(health.models) > 3 else "")
    severity: Severity = "fault"
    if served is not None:
        if backend.family not in ("llamacpp", "vllm"):
            return  # others may well take a part of the name
        words = f"the server knows this model as {served.id} only"
    elif _takes_any_name(spec, health):
        words, severity = "the server answers to any name; this is its own", "warning"
    elif true is None and (hit := _nearest(spec.model, health.models)):
        words = f"is not served; {hit} may be meant, but then its price must be looked at, too"
    else:
        words = f"is not served; the server serves {names}"
    yield _lie(spec, ("model",), true, words, fix=true, severity=severity)


def _of_backend(spec: Spec, health: Health) -> Iterator[Lie]:
    """Families that the registry has a word for; others are recognised whatever is declared."""
    told, words = health.family, f"the server says that it is {health.family}"
    if is_openai(spec.api_base):
        told, words = "openai", "this is OpenAI's own API"
    elif told not in ("llamacpp", "vllm"):
        return
    if spec.backend is not None and spec.backend != told:
        yield _lie(spec, ("backend",), told, words, fix=told)


def _backend(spec: Spec, health: Health) -> Backend:
    """How the server is spoken to."""
    return get_backend(spec.backend or "openai", family=health.family, version=health.version)


def _takes_any_name(spec: Spec, health: Health) -> bool:
    return len(health.models) == 1 and _backend(spec, health).answers_any_name


def _nearest(model: str, served: Sequence[ServedModel]) -> str | None:
    """The listed name most like `model`, folders aside."""
    by_file = {_file(m.id): m.id for m in reversed(served)}
    hit = near(_file(model), by_file)
    return None if hit is None else _usable(by_file[hit])


def _file(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def _usable(name: str) -> str | None:
    """A name that a registry may hold."""
    return name if text_problem(name) is None else None


# --- sizes


def _of_reply_and_context(spec: LLMSpec, health: Health) -> Iterator[Lie]:
    can = spec.capabilities
    told = _context(spec, health)
    if told is not None and can.max_tokens > told:
        words = f"prompt and completion share a context of {told:,} tokens"
        yield _lie(spec, ("capabilities", "max_tokens"), told, words, fix=told)
    yield from _of_context(spec, ("capabilities", "max_context"), can.max_context, told)
    slots = None if _is_router(health) else health.slots
    if can.slots is None or slots is None or can.slots == slots:
        return
    where = ("capabilities", "slots")
    if can.slots > slots:
        words = f"the server works on {slots} at once; the others would wait there"
        yield _lie(spec, where, slots, words, fix=slots)
    else:
        words = f"the server works on {slots} at once; it is never given more than declared"
        yield _lie(spec, where, slots, words, severity="note")


def _of_context(spec: Spec, where: Where, declared: int, told: int | None) -> Iterator[Lie]:
    if told is None or told == declared:
        return
    if told < declared:
        words = f"the server gives {told:,} tokens to a request"
        yield _lie(spec, where, told, words, fix=told)
    else:
        words = f"the server gives {told:,} tokens to a request; more than declared is never used"
        yield _lie(spec, where, told, words, severity="note")


def _context(spec: Spec, health: Health) -> int | None:
    """Tokens of one request as the server tells."""
    name = true_model(spec, health) or spec.model
    served = _backend(spec, health).serves(name, health.models)
    own = None if _is_router(health) else health.context
    return (served.context if served is not None else None) or own


def _is_router(health: Health) -> bool:
    """Whether a llama.cpp server stands in front of others: what it says of itself is not true of them."""
    return health.family == "llamacpp" and len(health.models) > 1


# --- abilities


def _of_abilities(spec: LLMSpec, facts: Facts) -> Iterator[Lie]:
    can, template, health = spec.capabilities, facts.template, facts.health
    sees = None if health is None or _is_router(health) else health.vision
    if sees is not None and sees != can.vision:
        words = "the server takes images" if sees else "the server takes no images"
        yield _lie(spec, ("capabilities", "vision"), sees, words, fix=sees)
    if template.effort and not can.reasoning:
        words = "its chat template can be told how hard to think"
        yield _lie(spec, ("capabilities", "reasoning"), True, words, fix=True)
    if can.tools and template.tools is False:
        words = "its chat template knows no tools"
        yield _lie(spec, ("capabilities", "tools"), False, words, fix=False)
    elif template.tools and not can.tools:
        words = "its chat template knows tools; whether the model uses them well, only trying tells"
        yield _lie(spec, ("capabilities", "tools"), True, words, severity="note")


def _of_speed(spec: LLMSpec, measured: Speeds | None) -> Iterator[Lie]:
    declared = spec.capabilities.speed_tokens_per_sec
    if measured is None or measured.seen.speed < SURELY or not is_far_off(declared, measured.speed):
        return
    found = float(f"{measured.speed:.3g}")
    found = int(found) if found.is_integer() else found
    words = f"{found:g} tokens a second were measured"
    yield _lie(spec, ("capabilities", "speed_tokens_per_sec"), found, words, fix=found)


def _of_vectors(spec: EmbeddingSpec, facts: Facts) -> Iterator[Lie]:
    told = facts.dimension
    if told is not None and told != spec.dimension:
        words = f"the server's vectors have {told:,} numbers, so every call fails"
        yield _lie(spec, ("dimension",), told, words, fix=told, severity="fault")
    if facts.refusal:
        yield _lie(spec, (), None, f"made no vector: {facts.refusal}", severity="fault")
    if facts.unasked:
        yield _lie(spec, (), None, f"was not asked for a vector: {facts.unasked}", severity="note")


# --- prices


def _of_price(spec: Spec, price: KnownPrice | None) -> Iterator[Lie]:
    """The published price where none is declared. A declared one stands: contracts differ."""
    if price is None or not spec.is_free or (isinstance(spec, LLMSpec) and spec.tier == "free"):
        return
    single = not isinstance(spec, LLMSpec) or price.completion in (None, price.prompt)
    values = {"cost_per_1k_tokens": price.prompt}
    if not single:
        values = {
            "cost_per_1k_prompt_tokens": price.prompt,
            "cost_per_1k_completion_tokens": price.completion or 0.0,
        }
    if isinstance(spec, LLMSpec) and price.cached is not None:
        values["cost_per_1k_cached_tokens"] = price.cached
    for field, value in values.items():
        words = f"calls are booked as free; the published price, by {price.source}"
        yield _lie(spec, (field,), value, words, fix=value)


def _lie(
    spec: Spec, where: Where, found: Any, words: str, *, fix: Any = None, severity: Severity = "warning"
) -> Lie:
    declared: Any = spec if where else None
    for field in where:
        declared = getattr(declared, str(field))
    return Lie(
        entry=spec.name, where=where, declared=declared, found=found, words=words, fix=fix, severity=severity
    )
