"""Choosing as a flow: use what is known, ask only what is not, stop as soon as the answer is certain."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from maxwell.calls.counting import text_tokens
from maxwell.calls.effects import Flow, Gather, Limits
from maxwell.calls.entries import Entry
from maxwell.calls.probe import PROBE_SECONDS, ask_all
from maxwell.calls.spaces import Spaces
from maxwell.calls.state import PoolState, called, with_tokens
from maxwell.decision import Decision, Rejected, Request, Scored
from maxwell.errors import BudgetExceeded, LedgerError, NoEligibleLM
from maxwell.explain import refusal
from maxwell.health import Health
from maxwell.scheduler import PASSING, decide
from maxwell.tokens import TEMPLATE_TOKENS_PER_MESSAGE

# An estimate this close to the limit is worth asking the server's tokenizer: bytes / 4 is off by up to
# half on code and on languages other than English.
NEAR_LEAST, NEAR_MOST = 0.7, 1.6
MOST_COUNTS = 3  # servers asked at once to count one prompt
_COUNT_LIMITS = Limits(
    connect=PROBE_SECONDS, first_byte=PROBE_SECONDS, idle=PROBE_SECONDS, total=PROBE_SECONDS
)
COUNT_ROUNDS = 2  # a first count may bring others near their limits


def choose(
    state: PoolState, request: Request, *, name: str | None = None, prompt: str | None = None
) -> Flow[Decision]:
    """The decision for `request`, asking endpoints of unknown state first.

    Args:
        state: The pool's state.
        request: What is wanted.
        name: The only entry that may be chosen.
        prompt: The prompt's text, to have it counted where the estimate is near a limit.

    Raises:
        UnknownName: No such entry.
        ValueError: A requirement is out of range.
    """
    entries = state.llms if name is None else [state.llm(name)]
    yield from learn(state, entries, request)
    decision = state.decide(request, name=name)
    for _ in range(COUNT_ROUNDS if prompt is not None else 0):
        counted = yield from _count(state, decision, prompt or "")
        if not counted:
            break
        request = with_tokens(request, counted)
        decision = state.decide(request, name=name)
    return decision


def insist(state: PoolState, decision: Decision) -> Decision:
    """`decision` if it has a winner.

    Raises:
        BudgetExceeded: The one that was named has no budget left.
        LedgerError: The one that was named needs books, and they cannot be kept.
        NoEligibleLM: Otherwise.
    """
    if decision.ranked:
        return decision
    if decision.by == "name" and decision.rejected[0].reason in ("budget", "budget_unknown"):
        raise _no_budget(state, decision.rejected[0])
    names = [no.spec.name for no in decision.rejected]
    raise NoEligibleLM(refusal(state.candidates([state.llm(n) for n in names]), decision), decision)


def _no_budget(state: PoolState, no: Rejected) -> BudgetExceeded | LedgerError:
    if no.reason == "budget_unknown":
        return LedgerError(f"{no.spec.name}: {no.detail}")
    return BudgetExceeded(
        no.spec.name,
        left=no.have,
        needed=no.need,
        unit="usd" if no.note == "usd" else "tokens",
        resets_at=state.resets_at(),
    )


def learn(
    state: PoolState, entries: Sequence[Entry], request: Request, *, seconds: float = PROBE_SECONDS
) -> Flow[None]:
    """Ask the endpoints whose state matters and is not known, for `seconds` at most; refresh old ones aside.

    An old state that allows is used meanwhile. An old one that forbids is waited for only where nothing
    else can be chosen.
    """
    yield from state.open_books(entries)
    if all(state.is_fresh(entry) for entry in entries):
        return
    ranking = _hopeful(state, entries, request)
    yield from _ask(
        state,
        ranking,
        lambda entry: _can_begin(state, [entry], request),
        hopeless=not _can_begin(state, entries, request),
        seconds=seconds,
    )


def _can_begin(state: PoolState, entries: Sequence[Entry], request: Request) -> bool:
    """Whether one of them may be chosen by what is known now, and its server need not be waited for."""
    candidates = state.candidates(entries, request=request)
    return any(s.state not in PASSING for s in decide(candidates, request).ranked)


def _ask(
    state: PoolState,
    ranking: Sequence[Entry],
    usable: Callable[[Entry], bool],
    *,
    hopeless: bool,
    seconds: float = PROBE_SECONDS,
) -> Flow[None]:
    """Ask those of `ranking`, best first, whose state is not known, and refresh old states aside.

    Args:
        state: The pool's state.
        ranking: Who could be chosen.
        usable: Whether one may be chosen by what is known now.
        hopeless: Whether nobody may be, so that old states that forbid are asked again.
        seconds: Longest to wait.
    """
    asking = [e for e in ranking if (state.must_ask(e) if hopeless else state.known(e) is None)]
    if asking:
        waited = {e.endpoint for e in asking}

        def certain() -> bool:
            """Whether the best that can still win is known to be usable."""
            for entry in ranking:
                if entry.endpoint in waited and state.must_ask(entry):
                    return False
                if usable(entry):
                    return True
            return True

        endpoints = [e.endpoint for e in asking]
        yield from ask_all(endpoints, state.health, state.clock, seconds=seconds, enough=certain)
    old = [e.endpoint for e in ranking if e not in asking and not state.is_fresh(e)]
    if old:
        yield from ask_all(old, state.health, state.clock, seconds=0.0)


def _hopeful(state: PoolState, entries: Sequence[Entry], request: Request) -> list[Entry]:
    """Who could be chosen if every endpoint that must be asked were up, best first: only they need asking."""
    candidates = []
    for entry, candidate in zip(entries, state.candidates(entries, request=request), strict=True):
        if state.must_ask(entry) and candidate.blocked in (None, "model_missing"):
            # What it can do depends on what its server says that it is.
            candidate = msgspec.structs.replace(candidate, state="up", blocked=None, cannot="")
        candidates.append(candidate)
    return [state.llm(s.spec.name) for s in decide(candidates, request).ranked]


def _count(state: PoolState, decision: Decision, prompt: str) -> Flow[dict[str, int]]:
    """Exact prompt sizes from the servers whose limit the estimate comes near."""
    names = [s.spec.name for s in decision.ranked[:1] if _near(_total(s), s.context)]
    names += [r.spec.name for r in decision.rejected if r.reason == "context" and _near(r.need, r.have)]
    flows = []
    asked = []
    for name in [n for n in names if n not in decision.request.prompt_tokens][:MOST_COUNTS]:
        entry = state.llm(name)
        health = state.known(entry)
        if health is None or health.state != "up":
            continue
        flows.append(_count_prompt(entry, health, prompt))
        asked.append(name)
    if not flows:
        return {}
    results = yield Gather(flows, PROBE_SECONDS, lambda: False)
    return {name: n for name, n in zip(asked, results, strict=True) if isinstance(n, int)}


def _total(scored: Scored) -> int:
    return scored.prompt_tokens + scored.completion_tokens


def _near(total: float, context: float) -> bool:
    return NEAR_LEAST * context <= total <= NEAR_MOST * context


def _count_prompt(entry: Entry, health: Health, prompt: str) -> Flow[int | None]:
    """Tokens of `prompt` by the entry's server, chat template allowed for."""
    tokens = yield from text_tokens(entry, entry.backend(health), prompt, _COUNT_LIMITS)
    return None if tokens is None else len(tokens) + TEMPLATE_TOKENS_PER_MESSAGE


def choose_embedding(state: PoolState, name_or_tag: str | None, spaces: Spaces | None = None) -> Flow[Entry]:
    """The embedding of that name, else the first usable one with that tag; None = tag "default", else any.

    Where `spaces` knows the first one with that tag, only those of its vector space count: another one's
    vectors could not be compared with those made on other days.

    Raises:
        UnknownName: Nothing has that name or tag.
        BudgetExceeded: The one of that name has no budget left.
        LedgerError: The one of that name needs books, and they cannot be kept.
        NoEligibleLM: What has it cannot be used.
    """
    entries = _called(state.embeddings, "embedding", name_or_tag)
    strangers: list[Entry] = []
    if spaces is not None and entries:
        first = entries[0]
        entries, strangers = spaces.one_space(entries)
    aside = [
        f"{e.spec.name}: the registry's lock puts it in another vector space than {first.spec.name}, "
        "ask for it by its name"
        for e in strangers
    ]
    return (yield from _first_usable(state, entries, "embedding", name_or_tag, aside))


def choose_reranker(state: PoolState, name_or_tag: str | None) -> Flow[Entry]:
    """The reranker of that name, else the first usable one with that tag; None = tag "default", else any.

    Raises as `choose_embedding`.
    """
    entries = _called(state.rerankers, "reranker", name_or_tag)
    return (yield from _first_usable(state, entries, "reranker", name_or_tag))


def _called(entries: Sequence[Entry], what: str, name_or_tag: str | None) -> list[Entry]:
    """See `called`; without a name or tag those with the tag "default", else all."""
    if name_or_tag is None:
        return [e for e in entries if "default" in e.spec.tags] or list(entries)
    return called(entries, what, name_or_tag)


def _first_usable(
    state: PoolState,
    entries: Sequence[Entry],
    what: str,
    name_or_tag: str | None,
    aside: Sequence[str] = (),
) -> Flow[Entry]:
    """The first that can be used. `aside` says who else is not considered, and why."""
    if not entries:
        raise NoEligibleLM(f"no {what} can be chosen: the registry declares none")

    yield from state.open_books(entries)

    def usable(entry: Entry) -> bool:
        return not embedding_problem(state, entry)

    yield from _ask(state, entries, usable, hopeless=not any(map(usable, entries)))
    problems = []
    for entry in entries:
        problem = embedding_problem(state, entry)
        if not problem:
            return entry
        problems.append(f"{entry.spec.name}: {problem}")
    named = [entry for entry in entries if entry.spec.name == name_or_tag]
    if named and (no_budget := state.budget_problem(named[0])) is not None:
        raise no_budget
    raise NoEligibleLM(f"no {what} can be chosen: " + "; ".join([*problems, *aside]))


def embedding_problem(state: PoolState, entry: Entry) -> str:
    """Why an embedding or a reranker cannot be used now, or ""."""
    health = state.known(entry)
    _, words = entry.blocked_by(health)
    if words:
        return words
    if health is None:
        return "no answer to the health check"
    if health.state not in ("up", "asleep"):
        return health.detail or health.state
    problem = state.budget_problem(entry)
    return "" if problem is None else str(problem).removeprefix(f"{entry.spec.name}: ")
