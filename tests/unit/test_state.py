from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from maxwell.calls.state import PoolState, called
from maxwell.decision import Candidate, Request
from maxwell.errors import LedgerError, UnknownName
from maxwell.health import Health, HealthBook
from maxwell.ledger import Amount, Ledger, Limit, Used
from maxwell.ledger.memory import MemoryLedger
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, Registry
from maxwell.testing.clock import FakeClock
from maxwell.types import Requirements, ServedModel


def llm(name: str = "box", model: str = "m", **fields: Any) -> LLMSpec:
    capabilities = Capabilities(max_tokens=1024, max_context=8192, speed_tokens_per_sec=50.0)
    fields = {"api_base": f"http://{name}", "backend": "vllm"} | fields
    return LLMSpec(name=name, model=model, capabilities=capabilities, default_temperature=0.5, **fields)


def embedding(name: str, *tags: str, **fields: Any) -> EmbeddingSpec:
    return EmbeddingSpec(
        name=name, api_base=f"http://{name}", model="e", dimension=4, max_context=512, tags=tags, **fields
    )


def pool(
    *specs: LLMSpec | EmbeddingSpec, ledger: Ledger | None = None, environ: dict[str, str] | None = None
) -> PoolState:
    clock = FakeClock()
    registry = Registry(
        llms=tuple(s for s in specs if isinstance(s, LLMSpec)),
        embeddings=tuple(s for s in specs if isinstance(s, EmbeddingSpec)),
        budget_timezone="UTC",
    )
    books = MemoryLedger() if ledger is None else ledger
    return PoolState(
        registry, health=HealthBook(None, clock), ledger=books, clock=clock, environ=environ or {}
    )


def tell(state: PoolState, health: str = "up", *, entry: int = 0, **more: Any) -> Health:
    """Let an LLM's endpoint be found in that state."""
    found = Health(state=health, at=state.clock.time(), **more)  # type: ignore[arg-type]
    state.health.put(state.llms[entry].endpoint, found)
    return found


def seen(state: PoolState, index: int = 0) -> Candidate:
    return state.candidates(state.llms)[index]


def request() -> Request:
    return Request(needs=Requirements())


# --- health


def test_an_endpoint_never_asked_is_not_chosen() -> None:
    decision = pool(llm()).decide(request())
    assert [(no.reason, no.detail) for no in decision.rejected] == [("down", "no answer to the health check")]


def test_an_entry_follows_its_endpoint() -> None:
    state = pool(llm())
    for health in ("up", "loading", "down", "up"):
        tell(state, health, detail=f"it is {health}")
        candidate = seen(state)
        assert (candidate.state, candidate.detail) == (health, f"it is {health}")


def test_entries_of_one_server_share_its_health() -> None:
    state = pool(llm("one", api_base="http://box/v1"), llm("two", api_base="http://box"))
    tell(state)
    assert [c.state for c in state.candidates(state.llms)] == ["up", "up"]


@pytest.mark.parametrize(
    ("slot", "model", "context"),
    [(None, None, 8192), (2048, None, 2048), (None, 1024, 1024), (99999, None, 8192)],
)
def test_the_smaller_context_counts(slot: int | None, model: int | None, context: int) -> None:
    state = pool(llm())
    tell(state, context=slot, models=(ServedModel("m", context=model),))
    assert seen(state).context == context
    tell(state)
    assert seen(state).context == 8192


def test_a_server_without_the_model_is_named_with_what_it_serves() -> None:
    state = pool(llm(model="wanted"))
    tell(state, models=tuple(ServedModel(f"other-{i}") for i in range(5)))
    (rejected,) = state.decide(request()).rejected
    assert rejected.reason == "model_missing"
    assert rejected.detail == "http://box does not serve wanted; it serves other-0, other-1, other-2, ..."
    tell(state, models=(ServedModel("wanted"),))
    assert state.decide(request()).chosen is not None


def test_a_missing_key_blocks_whatever_the_health() -> None:
    spec = llm(api_key_env="BOX_KEY")
    state = pool(spec)
    tell(state)
    (rejected,) = state.decide(request()).rejected
    assert (rejected.reason, rejected.detail) == ("key", "environment variable BOX_KEY is not set")
    state = pool(spec, environ={"BOX_KEY": "sk-canary"})
    tell(state)
    assert state.decide(request()).chosen is not None
    assert "sk-canary" not in repr(state.llms[0].endpoint)


class Meanwhile(tuple[ServedModel, ...]):
    """A list of models; the n-th time that it is looked through, something else happens first."""

    happens: Callable[[], object]
    countdown = 0

    def __iter__(self) -> Iterator[ServedModel]:
        self.countdown -= 1
        if self.countdown == 0:
            self.happens()
        return super().__iter__()


@pytest.mark.parametrize("moment", [1, 2, 3])
@pytest.mark.parametrize("other", [None, "loading", "down"])
def test_threads_that_know_different_things_do_not_mix_them_up(other: str | None, moment: int) -> None:
    """One thread looks at an entry with news while another, that has not heard them, looks too."""
    state = pool(llm())
    entry = state.llms[0]
    models = Meanwhile([ServedModel("m", context=2048)])
    news = Health(state="up", at=state.clock.time(), models=models)
    old = None if other is None else Health(state=other, at=state.clock.time() - 1)  # type: ignore[arg-type]
    models.happens = lambda: entry.refresh(old)
    models.countdown = moment
    mine = entry.refresh(news)
    assert (mine.state, mine.context) == ("up", 2048)
    later = entry.refresh(news)
    assert (later.state, later.context) == ("up", 2048)


def test_what_one_thread_decides_on_does_not_change_under_it() -> None:
    state = pool(llm())
    tell(state)
    mine = seen(state)
    tell(state, "down")
    theirs = seen(state)
    assert (mine.state, theirs.state) == ("up", "down")


# --- budgets


class Failing(MemoryLedger):
    fails = True

    def usage(self, day: Any) -> dict[str, Used]:
        if self.fails:
            raise LedgerError("the ledger cannot be read")
        return super().usage(day)


def test_what_is_left_today_is_known() -> None:
    state = pool(llm("limited", daily_budget_tokens=1000, daily_budget_usd=2.0), llm("free"))
    day = state.today()
    state.ledger.reserve("limited", day, Amount.of(300, 0.5), Limit())
    state.ledger.book("limited", day, Amount.of(200, 0.25))
    limited, free = state.candidates(state.llms)
    assert (limited.tokens_left, limited.usd_left) == (500, 1.25)
    assert limited.resets_in == 12 * 3600
    assert (free.tokens_left, free.usd_left) == (None, None)


def test_a_ledger_that_cannot_be_read_excludes_what_has_a_budget_and_nothing_else() -> None:
    ledger = Failing()
    state = pool(llm("limited", daily_budget_tokens=1000), llm("free"), ledger=ledger)
    tell(state)
    tell(state, entry=1)
    decision = state.decide(request())
    assert [s.spec.name for s in decision.ranked] == ["free"]
    assert [(no.reason, no.detail) for no in decision.rejected] == [
        ("budget_unknown", "the ledger cannot be read")
    ]
    ledger.fails = False
    assert [s.spec.name for s in state.decide(request()).ranked] == ["limited", "free"]


def test_a_spent_embedding_says_so() -> None:
    state = pool(embedding("e", daily_budget_tokens=100))
    assert state.budget_problem(state.embeddings[0]) is None
    state.ledger.book("e", state.today(), Amount(100))
    problem = state.budget_problem(state.embeddings[0])
    assert str(problem).startswith("e: daily budget has 0 tokens left; it resets at ")


# --- names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen-coder-30", "no LLM 'qwen-coder-30'; did you mean qwen-coder-30b?"),
        ("zzz", "no LLM 'zzz'; there is qwen-coder-30b, gpt-4o"),
        ("embed", "no LLM 'embed'; there is qwen-coder-30b, gpt-4o"),
    ],
)
def test_an_unknown_llm_is_answered_with_near_ones(name: str, message: str) -> None:
    state = pool(llm("qwen-coder-30b"), llm("gpt-4o"), embedding("embed"))
    with pytest.raises(UnknownName) as caught:
        state.llm(name)
    assert str(caught.value) == message


def test_an_embedding_is_found_by_name_before_its_tag() -> None:
    state = pool(embedding("one", "two", "default"), embedding("two", "default"))
    assert [e.spec.name for e in called(state.embeddings, "embedding", "two")] == ["two"]
    assert [e.spec.name for e in called(state.embeddings, "embedding", "default")] == ["one", "two"]
    with pytest.raises(UnknownName, match="no embedding 'defualt'; did you mean default"):
        called(state.embeddings, "embedding", "defualt")


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(UnknownName, match="no LLM 'x': the registry declares none"):
        pool().llm("x")
