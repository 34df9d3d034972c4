"""Finding out what is true of every entry, as a flow; `lies` says what the registry tells otherwise."""

from __future__ import annotations

import contextlib
import copy
import math
from functools import partial
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from maxwell.backends import get_backend
from maxwell.backends.wire import BAD_JSON
from maxwell.calls.effects import Aside, First, Flow, Handle, Limits, Start, TransportError
from maxwell.calls.embed_batch import SPECIAL_TOKENS
from maxwell.calls.entries import Entry
from maxwell.calls.lies import Facts, Lie, Template, lies, true_model
from maxwell.calls.prices import known_price
from maxwell.calls.probe import fetch
from maxwell.calls.state import PoolState
from maxwell.calls.status import Status, statuses
from maxwell.calls.whole import Post, Task, insisting, post
from maxwell.errors import BudgetExceeded, LedgerError, MaxwellError
from maxwell.health import Health
from maxwell.registry.specs import EmbeddingSpec, LLMSpec
from maxwell.tokens import estimate, text_upper_bound, utf8_length
from maxwell.types import Usage

SAMPLE = "How long is a vector?"
EMBED_SECONDS = 60.0  # for that one text; a sleeping server loads its model first
_LIMITS = Limits(connect=2.0, first_byte=5.0, idle=5.0, total=5.0)
_UNIT = 0.01  # so far from 1 may the length of a normalised vector be: servers compute in 16 bits, too


class Examined(Struct, frozen=True, kw_only=True):
    """One entry, looked at closely.

    Attributes:
        status: How it stands.
        facts: What was found out.
        lies: Where the registry says otherwise.
        problem: Why it cannot be used although its server answers, where no lie says so; else "".
    """

    status: Status
    facts: Facts
    lies: tuple[Lie, ...]
    problem: str


def examine(state: PoolState) -> Flow[list[Examined]]:
    """Ask every server anew what it is, and every embedding that is up for one vector; compare.

    Nothing else is generated. The vectors are booked like any call.
    """
    found = yield from statuses(state, refresh=True)
    looks: list[Handle] = []
    kinds = {"llms": state.llms, "embeddings": state.embeddings, "rerankers": state.rerankers}
    for kind, entries in kinds.items():
        for entry in entries:
            looks.append((yield Start(_examine(state, found[len(looks)], entry, (kind, entry.index)))))
    while running := [look for look in looks if not look.done]:
        yield First(running)
    for look in looks:
        if look.error is not None:
            raise look.error
    return [look.result for look in looks]


def _examine(state: PoolState, status: Status, entry: Entry, place: tuple[str, int]) -> Flow[Examined]:
    """One entry: what only it can be asked."""
    spec, health = status.spec, status.health
    facts = Facts(place=place, health=health, measured=status.measured)
    if health is not None and health.state in ("up", "asleep") and entry.key_problem is None:
        if isinstance(spec, LLMSpec):
            facts = replace(facts, template=(yield from _template(entry, health)))
        elif isinstance(spec, EmbeddingSpec):
            facts = yield from _with_vector(state, _truly_named(entry, spec, health), facts)
    if spec.is_free:
        facts = replace(facts, price=(yield Aside(partial(known_price, spec))))
    found = tuple(lies(spec, facts))
    told = entry.blocked_by(health)[0] == "model_missing" and any(lie.field == "model" for lie in found)
    return Examined(status=status, facts=facts, lies=found, problem="" if told else status.problem)


def _template(entry: Entry, health: Health) -> Flow[Template]:
    """What a llama.cpp server says of its chat template; nothing where it does not."""
    if health.family != "llamacpp":
        return Template()
    request = get_backend("llamacpp").probes(entry.endpoint.root, entry.endpoint.key).props
    assert request is not None
    with contextlib.suppress(TransportError, *BAD_JSON):
        status, _, body = yield from fetch(request, _LIMITS)
        props = msgspec.json.decode(body) if status == 200 else None
        return _read_template(props)
    return Template()


def _read_template(props: Any) -> Template:
    told = props.get("chat_template_caps") if isinstance(props, dict) else None
    if not isinstance(told, dict):
        return Template()
    tools, effort = told.get("supports_tools"), told.get("supports_reasoning_effort")
    return Template(
        tools=tools if isinstance(tools, bool) else None, effort=effort if isinstance(effort, bool) else None
    )


def _truly_named(entry: Entry, spec: EmbeddingSpec, health: Health) -> Entry:
    """The entry under the name by which its server knows the model: a wrong one must hide nothing else."""
    model = true_model(spec, health)
    if model is None or model == spec.model:
        return entry
    named = copy.copy(entry)
    named.spec = replace(spec, model=model)
    return named


def _with_vector(state: PoolState, entry: Entry, facts: Facts) -> Flow[Facts]:
    """The facts, and those that one vector tells."""
    try:
        vector = yield from _vector(state, entry)
    except (BudgetExceeded, LedgerError) as error:
        return replace(facts, unasked=_said(error, entry))
    except MaxwellError as error:
        return replace(facts, refusal=_said(error, entry))
    length = math.hypot(*vector)
    return replace(facts, dimension=len(vector), normalised=abs(length - 1.0) < _UNIT)


def _said(error: MaxwellError, entry: Entry) -> str:
    """Its words without the entry's name, which stands beside them."""
    return str(error).removeprefix(f"{entry.spec.name}: ")


def _vector(state: PoolState, entry: Entry) -> Flow[list[float]]:
    """The vector of the sample, of whatever size: an ordinary call would refuse one that was not declared."""
    spec, backend = entry.spec, entry.backend(state.known(entry))
    assert isinstance(spec, EmbeddingSpec)

    def decode(body: bytes) -> tuple[list[float], Usage | None]:
        reply = backend.decode_embeddings(body, 1)
        return reply.vectors[0], reply.usage

    asked = Post(
        lambda: backend.embed(spec, [SAMPLE], entry.endpoint.key),
        decode,
        what="an embeddings reply",
        worst=text_upper_bound(SAMPLE) + SPECIAL_TOKENS,
        likely=estimate(utf8_length(SAMPLE)),
    )
    with state.receipts.embed(spec.name, [SAMPLE]) as record, record.attempt(spec):
        task = Task(record, state.clock.monotonic() + EMBED_SECONDS)
        return (yield from insisting(state, entry, task, lambda: post(state, entry, backend, asked, task)))
