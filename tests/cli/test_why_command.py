from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from calling import make_registry
from click.testing import Result
from command_line import one_line, unreachable, unstyled

from maxwell.decision import Candidate, Decision, Request
from maxwell.errors import BackendError, BudgetExceeded, CallTimeout, StatusError, StreamBroken
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.receipts.book import ReceiptBook
from maxwell.receipts.record import Record
from maxwell.scheduler import decide
from maxwell.testing import FakeClock
from maxwell.testing.fixtures import FakeServers, WriteRegistry
from maxwell.types import Completion, Requirements, Timings, Usage

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]

PROMPT = "Why is the sky blue?"
MESSAGES = [{"role": "user", "content": PROMPT}]
COUNTED = Usage(1300, 402, cached_tokens=1024)
_PRICES = {
    "cost_per_1k_tokens": 0.005,
    "cost_per_1k_cached_tokens": 0.0025,
    "cost_per_1k_completion_tokens": 0.015,
}
REGISTRY = make_registry(
    unreachable("local"),
    unreachable(
        "paid", capabilities={"max_tokens": 100, "max_context": 1000, "speed_tokens_per_sec": 90}, **_PRICES
    ),
    unreachable("gone"),
    {"name": "vectors", "api_base": "http://127.0.0.1:9", "model": "m", "dimension": 4, "max_context": 99},
)
LOCAL, PAID, GONE = REGISTRY.llms
VECTORS = REGISTRY.embeddings[0]


class Past:
    """Calls that were made, each leaving its receipt."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.clock = FakeClock()
        self.database = SQLiteLedger(home / ".maxwell", self.clock).database
        self.book = ReceiptBook(self.database, self.clock, **settings)

    def chat(
        self,
        *ends: BaseException | None,
        usage: Usage = COUNTED,
        chosen: Decision | None = None,
    ) -> str:
        """A call whose attempts, at `paid` first and then at `local`, end like this; returns the id."""
        with contextlib.suppress(BaseException), self.book.chat(chosen or decided(), MESSAGES) as record:
            for spec, end in zip((PAID, LOCAL), ends, strict=False):
                with contextlib.suppress(BackendError), record.attempt(spec):
                    self.clock.advance(1.25)
                    if end is not None and not isinstance(end, GeneratorExit | StreamBroken):
                        raise end
                    record.used(usage, 0.0025)
                    if end is not None:
                        raise end
            if ends[-1] is not None:
                raise ends[-1]
            record.answered(reply(usage))
        self.database.flush()
        return record.id

    @contextlib.contextmanager
    def call(self, chosen: Decision) -> Iterator[Record]:
        """A call whose record is written by the test; errors of servers end it."""
        with contextlib.suppress(BackendError), self.book.chat(chosen, MESSAGES) as record:
            yield record
        self.database.flush()

    def embed(self, asked: str | None) -> str:
        with self.book.embed(asked, ["one", "two"]) as record, record.attempt(VECTORS):
            record.used(Usage(5, 0), 0.0)
        self.database.flush()
        return record.id


def decided(**needs: Any) -> Decision:
    candidates = [
        Candidate(spec=LOCAL, index=0),
        Candidate(spec=PAID, index=1),
        Candidate(spec=GONE, index=2, state="down", detail="cannot connect (Connection refused)"),
    ]
    return decide(candidates, Request(needs=Requirements(**needs), prompt_bytes=len(PROMPT)))


def reply(usage: Usage) -> Completion:
    timings = Timings(total_seconds=1.25, first_token_seconds=0.43)
    return Completion(
        text="Because.", finish_reason="stop", usage=usage, cost_usd=0.0025, timings=timings, llm="paid"
    )


def busy() -> StatusError:
    return StatusError('HTTP 503, "full": try again later', llm="paid", kind="overloaded", status=503)


def over_budget() -> BudgetExceeded:
    resets_at = datetime(2026, 1, 16, tzinfo=UTC)
    return BudgetExceeded("paid", left=3, needed=900, unit="tokens", resets_at=resets_at)


@pytest.fixture
def past(maxwell_home: Path) -> Iterator[Past]:
    made = Past(maxwell_home)
    yield made
    made.database.close()


def told(result: Result) -> Any:
    assert result.exit_code == 0
    return json.loads(result.stdout)


def test_tells_the_whole_story_of_the_last_call(run: Run, past: Past) -> None:
    past.embed(None)
    id_ = past.chat(None, chosen=decided(max_completion=80, time_cost_weight=10.0))
    result = run("why")
    assert (result.exit_code, result.stderr) == (0, "")
    blocks = [block.splitlines() for block in result.stdout.split("\n\n")]
    assert [len(block) for block in blocks] == [2, 3, 2, 1, 2, 1]
    assert blocks[0][0].startswith(f"Receipt {id_}: a chat call on 2026-01-15 ")
    assert blocks[0][1] == "Asked: 1 message, 20 characters; needs max_completion=80; weight 10."
    assert blocks[1][0].split()[:3] == ["RANK", "LLM", "SCORE"]
    assert [line.split()[:2] for line in blocks[1][1:]] == [["1", "paid"], ["2", "local"]]
    assert blocks[2][1].split(maxsplit=1) == ["gone", "cannot connect (Connection refused)"]
    assert blocks[3][0].startswith("paid is chosen over local: 7.1")
    assert " ".join(blocks[4][1].split()) == (
        "paid ok 1.250 - $0.0025 1,300 (1,024 cached) + 402 $0.005 in, $0.0025 cached, $0.015 out per 1K -"
    )
    assert blocks[5] == [
        "paid answered: 1.25 s in all, 0.43 s to the first token, 1,702 tokens, $0.0025, finish reason stop."
    ]


def test_a_failover_shows_each_attempt(run: Run, past: Past) -> None:
    past.chat(busy(), None, usage=Usage(13, 5))
    shown = run("why", "last").stdout
    attempts = [line.split() for line in shown.split("\n\n")[-2].splitlines()[1:]]
    assert attempts[0][:6] == ["paid", "overloaded", "1.250", "-", "-", "-"]
    assert " ".join(attempts[0][-6:]) == 'HTTP 503, "full": try again later'
    assert attempts[1][:8] == ["local", "ok", "1.250", "-", "$0.0025", "13", "+", "5"]
    assert "local answered after 1 other had failed: 2.5 s in all" in shown


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (over_budget(), "It failed, no daily budget had room for it: 1.25 s in all."),
        (
            GeneratorExit(),
            "The caller left before it was over: 1.25 s in all, 18 tokens (estimated), $0.0025.",
        ),
        (busy(), "It failed, overloaded: 1.25 s in all."),
        (
            StreamBroken("it broke off", partial=reply(Usage(13, 5, estimated=True)), llm="paid"),
            "The reply of paid broke off: 1.25 s in all, 0.43 s to the first token, 18 tokens (estimated)",
        ),
    ],
    ids=["budget", "cancelled", "server", "broken"],
)
def test_a_call_that_went_wrong_says_how(run: Run, past: Past, end: BaseException, words: str) -> None:
    past.chat(end, usage=Usage(13, 5, estimated=True))
    shown = run("why").stdout
    assert words in shown
    assert str(getattr(end, "message", end)) in shown
    assert ("13 + 5 (estimated)" in shown) == ("estimated" in words)


def test_a_price_that_the_server_sees_otherwise_is_shown(run: Run, past: Past) -> None:
    past.chat(None, usage=Usage(13, 5, reported_usd=0.0025))
    assert "says the server" not in run("why").stdout
    past.clock.advance(1)
    past.chat(None, usage=Usage(13, 5, reported_usd=0.0031))
    assert "$0.015 out per 1K, $0.0031 says the server" in run("why").stdout


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (None, "Asked: 2 texts, 6 characters; no embedding was named."),
        ("vectors", 'the embedding was asked for by name "vectors".'),
        ("fast", 'the embedding was asked for by tag "fast".'),
    ],
)
def test_an_embedding_call_has_its_receipt(run: Run, past: Past, asked: str | None, words: str) -> None:
    past.embed(asked)
    shown = run("why").stdout
    assert "an embedding call" in shown
    assert words in shown
    assert "vectors answered: 0 s in all, 5 tokens, $0." in shown
    assert "5 + 0" not in shown


def test_the_beginning_of_an_id_finds_it(run: Run, past: Past) -> None:
    first = past.chat(None)
    past.clock.advance(1)
    past.chat(None)
    assert told(run("why", "--json", first[:6].upper()))["id"] == first


def test_json_has_everything_by_name(run: Run, past: Past) -> None:
    id_ = past.chat(busy(), None, usage=Usage(13, 5))
    value = told(run("why", "--json"))
    assert (value["id"], value["at"], value["kind"]) == (id_, "2026-01-15T12:00:00.000+00:00", "chat")
    assert (value["outcome"], value["llm"], value["seconds"]) == ("ok", "local", 2.5)
    assert (value["prompt"], value["reply"]) == (None, None)
    assert value["usage"]["completion_tokens"] == 5
    assert value["cost_usd"] == 0.0025
    assert [attempt["outcome"] for attempt in value["attempts"]] == ["overloaded", "ok"]
    assert value["attempts"][0]["prices"] == {"prompt": 0.005, "completion": 0.015, "cached": 0.0025}
    for scored in value["choice"]["ranked"]:
        expected = -scored["mills"] - scored["seconds"] + scored["utilization_bonus"]
        assert scored["score"] == pytest.approx(expected, abs=1e-5)
    assert value["choice"]["rejected"] == [
        {"name": "gone", "reason": "down", "detail": "cannot connect (Connection refused)"}
    ]


def test_explain_and_why_call_the_terms_alike(
    run: Run, past: Past, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    past.chat(None)
    write_registry(fake_server().llm_entry("box"))
    [explained] = told(run("explain", "--json", "hello"))["ranked"]
    terms = set(told(run("why", "--json"))["choice"]["ranked"][0])
    assert terms <= set(explained)
    # Made of the others.
    assert set(explained) - terms == {"prompt_seconds", "completion_seconds"}


BUSY: dict[str, Any] = {"in_flight": 3.0, "slots": 2, "service": 28.0}


def test_to_wait_or_to_spend_is_told(run: Run, past: Past) -> None:
    def chosen(weight: float) -> Decision:
        local = Candidate(spec=LOCAL, speed=90.0, **BUSY)
        request = Request(needs=Requirements(time_cost_weight=weight), prompt_bytes=len(PROMPT))
        return decide([local, Candidate(spec=PAID, index=1)], request)

    past.chat(None, chosen=chosen(1.0))
    shown = run("why").stdout
    assert "busy (2 of 2 slots, 1 waiting; about 28 s)" in shown
    spending = next(line for line in shown.splitlines() if line.endswith(": spending."))
    assert spending.startswith("local is busy (2 of 2 slots, 1 waiting; about 28 s): paid saves ")
    assert told(run("why", "--json"))["choice"]["wait_or_spend"] == spending
    past.clock.advance(1)
    past.chat(None, chosen=chosen(0.01))
    assert re.search(r"^local is busy .*: waiting\.$", run("why").stdout, re.MULTILINE)


def test_a_choice_that_changed_at_the_call_is_told(run: Run, past: Past) -> None:
    with past.call(decided(time_cost_weight=10.0)) as record:
        record.decided(decide([Candidate(spec=LOCAL)], Request(needs=Requirements(), prompt_bytes=20)))
        with record.attempt(LOCAL):
            record.used(COUNTED, 0.0)
    shown = run("why").stdout
    assert "local is chosen: nothing else is eligible.\n" in shown
    assert "When the LLM was got it was paid; when it was called, this was decided anew.\n" in shown
    assert told(run("why", "--json"))["chosen_before"] == "paid"


def test_who_took_over_and_why_is_told_in_a_line(run: Run, past: Past) -> None:
    request = Request(needs=Requirements(), prompt_bytes=20)
    with past.call(decided()) as record:
        with contextlib.suppress(BackendError), record.attempt(PAID):
            raise busy()
        loading = Candidate(spec=GONE, index=2, state="loading", ready_in=25.0)
        record.decided(decide([Candidate(spec=LOCAL, **BUSY), loading], request))
        with record.attempt(GONE):
            record.used(COUNTED, 0.0)
    lines = run("why").stdout.splitlines()
    assert lines[-2].startswith("paid failed; gone is chosen over local: ")
    assert "gone is loading (ready in about 25 s): " in lines[-2]
    attempts = told(run("why", "--json"))["attempts"]
    assert [a["choice"] and a["choice"]["ranked"][0]["name"] for a in attempts] == [None, "gone"]


def test_one_that_is_done_in_time_may_be_asked_before_a_better_one(run: Run, past: Past) -> None:
    with past.call(decided(time_cost_weight=10.0)) as record:
        with contextlib.suppress(BackendError), record.attempt(LOCAL):
            raise busy()
        record.decided(decided(time_cost_weight=10.0))
        with record.attempt(LOCAL):
            pass
    shown = run("why").stdout
    sentence = "local was asked, because paid would not have been done in time."
    assert shown.count(sentence) == 2
    took_over = re.search(r"^local failed; paid is chosen over local: (.*)$", shown, re.MULTILINE)
    assert took_over is not None
    assert took_over[1].endswith(f". {sentence}")


def test_time_held_back_is_told(run: Run, past: Past) -> None:
    with past.call(decided()) as record:
        past.clock.advance(3.25)
        record.held(3.25)
        with record.attempt(PAID):
            past.clock.advance(1)
            record.used(COUNTED, 0.0)
    shown = run("why").stdout
    row = shown.split("\n\n")[-2].splitlines()[1].split()
    assert row[:4] == ["paid", "ok", "1.000", "3.250"]
    assert "paid answered: 4.25 s in all, held back for 3.25 s of them, 1,702 tokens" in shown


def test_a_call_that_asked_nobody_tells_why(run: Run, past: Past) -> None:
    error = CallTimeout(
        "the time ran out after 9.0 s of waiting for a free slot", llm="local", kind="timeout"
    )
    with past.call(decided()) as record:
        past.clock.advance(9)
        record.held(9)
        raise error
    expected = f"It failed, timeout ({error.message}): 9 s in all, held back for 9 s of them."
    assert run("why").stdout.splitlines()[-1] == expected


def test_the_list_has_a_line_each_newest_first(run: Run, past: Past) -> None:
    ids = [past.chat(None), past.chat(busy(), None), past.chat(GeneratorExit()), past.embed("fast")]
    past.clock.advance(1)
    ids.append(past.chat(over_budget()))
    lines = run("why", "--list").stdout.splitlines()
    assert lines[0].split() == ["ID", "WHEN", "LLM", "OUTCOME", "TOKENS", "COST", "SECONDS", "TRIES"]
    assert [line.split()[0] for line in lines[1:]] == ids[::-1]
    assert lines[1].split()[3:] == ["paid", "budget", "-", "-", "1.250", "-"]
    assert lines[4].split()[3:] == ["local", "ok", "1,702", "$0.0025", "2.500", "2"]
    assert len(run("why", "--list", "-n", "2").stdout.splitlines()) == 3
    assert [receipt["id"] for receipt in told(run("why", "--list", "--json"))] == ids[::-1]


def test_text_that_was_kept_is_shown(run: Run, maxwell_home: Path) -> None:
    past = Past(maxwell_home, log_content=True)
    past.chat(None)
    past.database.close()
    assert run("why").stdout.endswith("\nPrompt\nWhy is the sky blue?\n\nReply\nBecause.\n")
    assert told(run("why", "--json"))["prompt"] == PROMPT


@pytest.mark.parametrize("args", [["why"], ["why", "--list"], ["why", "--json"], ["why", "k3x9"]])
def test_before_the_first_call_a_line_says_so(run: Run, maxwell_home: Path, args: list[str]) -> None:
    result = run(*args)
    assert result.exit_code == 1
    assert "none yet" in one_line(result) or "no receipt yet" in one_line(result)
    assert list(maxwell_home.iterdir()) == []


def test_no_registry_is_needed(run: Run, past: Past) -> None:
    past.chat(None)
    assert not (past.database.home / "lm_registry.json").exists()
    assert run("why").exit_code == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--list", "k3x9"], 2, "--list shows the latest calls; leave ID out"),
        (["-n", "3"], 2, "-n goes with --list"),
        (["--list", "-n", "0"], 2, "0 is not in the range"),
        (["nonsense"], 1, "no receipt 'nonsense'"),
    ],
)
def test_wrong_usage_is_one_line(run: Run, past: Past, args: list[str], code: int, words: str) -> None:
    past.chat(None)
    result = run("why", *args)
    assert result.exit_code == code
    assert words in one_line(result)


def test_a_receipt_that_cannot_be_read_is_one_line(run: Run, past: Past) -> None:
    with past.database.write() as db:
        db.execute("INSERT INTO receipt VALUES ('k3x9q2mv', 5.0, 'nonsense')")
    result = run("why")
    assert result.exit_code == 1
    assert "the receipt k3x9q2mv cannot be read" in one_line(result)
    assert run("why", "--list").stdout.splitlines()[1].split()[3:] == ["-", "unreadable", *"----"]


def test_a_receipt_of_another_version_is_shown_as_far_as_it_is_known(run: Run, past: Past) -> None:
    body = (
        b'{"kind":"video","outcome":"dreamt","choice":{"ranked":[["a",1]],"prompt_bytes":3},"attempts":[{}]}'
    )
    with past.database.write() as db:
        db.execute("INSERT INTO receipt VALUES ('k3x9q2mv', 5.0, ?)", (body,))
        db.execute("INSERT INTO receipt VALUES ('k4x9q2mv', 4.0, '{}')")
    assert "It failed, dreamt" in run("why", "k3").stdout
    assert run("why", "k4").exit_code == 0
    assert len(run("why", "--list").stdout.splitlines()) == 3


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_terminal_of_any_width_shows_everything(on_terminal: OnTerminal, past: Past, columns: int) -> None:
    past.chat(busy(), None)
    for args, expected in (
        (["why"], ("paid is chosen over local", "HTTP 503", "1,300 (1,024 cached) + 402", "local answered")),
        (["why", "--list"], ("local", "1,702", "$0.0025", "2.500", "2")),
    ):
        code, shown = on_terminal(*args, columns=columns)
        assert code == 0
        shown = unstyled(shown)
        assert max(len(line.rstrip()) for line in shown.splitlines()) <= columns
        flat = " ".join(shown.split())
        for words in expected:
            assert words in flat
