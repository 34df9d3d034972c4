"""What comes of calls that must obey: types, second tries, maps, tool runs, and what their receipts keep."""

from __future__ import annotations

import asyncio
import enum
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from calling import Calls, assert_idle, chats, entry, make_registry

from maxwell.clock import SystemClock
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    ConstraintBroken,
    MaxwellError,
    ToolStepsExceeded,
)
from maxwell.lm_pool import LLMPool
from maxwell.receipts import Receipt
from maxwell.receipts.book import ReceiptBook
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import BackendName

YES_NO: dict[str, Any] = {"choices": ["yes", "no"]}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


def deaf(fake_server: FakeServers, dialect: BackendName = "llamacpp", **more: Any) -> FakeServer:
    """A server that says "maybe", whatever was asked."""
    return fake_server(dialect, constrained_reply="maybe", reply="maybe", **more)


def spent(server: FakeServer) -> int:
    return server.usage.total_tokens


# --- parse


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Place:
    name: str
    size: Size = Size.SMALL


Answer: Any = Literal["yes", "no"]


class Node(msgspec.Struct):
    value: int
    children: list[Node] = []


SHAPES: list[tuple[Any, str, Any]] = [
    (str, '"Oslo"', "Oslo"),
    (Literal["a", "b"], '"b"', "b"),
    (Size, '"large"', Size.LARGE),
    (int, "3", 3),
    (list[int], "[1,2]", [1, 2]),
    (str | None, "null", None),
    (str | None, '"x"', "x"),
    (Place, '{"name":"Oslo","size":"small"}', Place("Oslo")),
    (Node, '{"value":1,"children":[{"value":2,"children":[]}]}', Node(1, [Node(2)])),
]


@pytest.mark.parametrize(("shape", "text", "value"), SHAPES)
@pytest.mark.parametrize("dialect", ["llamacpp", "openai"])
def test_any_shape_can_be_parsed(
    fake_server: FakeServers, tmp_path: Path, dialect: BackendName, shape: Any, text: str, value: Any
) -> None:
    is_wrapped = dialect == "openai" and not text.startswith("{")
    said = f'{{"value": {text}}}' if is_wrapped else text
    server = fake_server(dialect, constrained_reply=said)
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        assert pool.get_lm().parse("Well?", shape) == value


@pytest.mark.parametrize("shape", [7, "int", None, {"type": "string"}, object, list[object], threading.Lock])
def test_what_is_no_shape_is_told_before_any_call(
    fake_server: FakeServers, tmp_path: Path, shape: Any
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool, pytest.raises(TypeError):
        pool.get_lm().parse("Well?", shape)

    async def main() -> None:
        async with calls.async_pool() as pool:
            await (await pool.get_lm()).parse("Well?", shape)

    with pytest.raises(TypeError):
        asyncio.run(main())
    assert chats(server) == []


def test_a_validator_of_the_type_has_its_say_and_may_be_told(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    pydantic = pytest.importorskip("pydantic")

    def even(number: int) -> int:
        if number % 2:
            raise ValueError("it must be even")
        return number

    from typing import Annotated

    model = pydantic.create_model("Model", n=(Annotated[int, pydantic.AfterValidator(even)], ...))
    server = fake_server(
        constrained_reply=lambda body: '{"n": 4}' if "even" in str(body["messages"]) else '{"n": 3}'
    )
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        with pytest.raises(ConstraintBroken, match=r"\$\.n: .*even") as caught:
            pool.get_lm().parse("Well?", model)
        assert caught.value.completion.text == '{"n": 3}'
        assert pool.get_lm().parse("Well?", model, repair=True).n == 4


# --- sent back


def test_what_is_sent_back_keeps_all_that_was_asked(fake_server: FakeServers, tmp_path: Path) -> None:
    server = deaf(fake_server, vision=True)
    calls = Calls(tmp_path, entry(server, "one", capabilities={"vision": True}))
    options: dict[str, Any] = {"images": [PNG], "system_prompt": "Be short.", "seed": 7, "max_tokens": 50}
    with pytest.raises(ConstraintBroken):
        calls.ask("generate", repair=True, temperature=0.5, stop=["###"], **options, **YES_NO)
    first, second = (request.body for request in chats(server))
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "user"]
    assert second["messages"][:2] == first["messages"]
    assert all(isinstance(m["content"], str) for m in second["messages"][2:])
    rest = [{k: v for k, v in body.items() if k != "messages"} for body in (first, second)]
    assert rest[0] == rest[1]


def test_the_caller_s_conversation_is_left_as_it_is(fake_server: FakeServers, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Well?"}]
    with Calls(tmp_path, entry(deaf(fake_server), "one")).pool() as pool, pytest.raises(ConstraintBroken):
        pool.get_lm().chat(messages, repair=True, **YES_NO)
    assert messages == [{"role": "user", "content": "Well?"}]


def test_a_reply_that_calls_tools_is_not_sent_back(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", tool_calls=[("tick", {})])
    tool = {"type": "function", "function": {"name": "tick", "parameters": {"type": "object"}}}
    calls = Calls(tmp_path, entry(server, "one", capabilities={"tools": True}))
    with calls.pool() as pool, pytest.raises(ConstraintBroken):
        pool.get_lm().parse("Well?", Answer, repair=True, tools=[tool])
    assert len(chats(server)) == 1  # a call without its result would be refused


@pytest.mark.parametrize("then", [faults.ServerError(500), faults.Reset(), faults.Cut(after=1)])
def test_the_second_call_may_fail_in_its_own_way(
    fake_server: FakeServers, tmp_path: Path, then: faults.Fault
) -> None:
    def reply(body: dict[str, Any]) -> str:
        server.fail(then, times=None)
        return "maybe"

    server = fake_server(constrained_reply=reply)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(BackendError) as caught:
        calls.ask("generate", repair=True, **YES_NO)
    assert not isinstance(caught.value, ConstraintBroken)
    assert calls.used("one").held_tokens == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"choices": ["yes", "no"]}, 'exactly one of ["yes","no"]'),
        ({"regex": "[0-9]+"}, "matches: [0-9]+"),
        ({"grammar": 'root ::= "yes"'}, 'root ::= "yes"'),
        ({"json_schema": {"type": "integer"}}, '{"type":"integer"}'),
        ({"json_schema": {"const": "x" * 5_000}}, "the corrected text."),
    ],
)
def test_who_is_corrected_is_told_what_it_must_be(
    fake_server: FakeServers, tmp_path: Path, options: dict[str, Any], told: str
) -> None:
    server = deaf(fake_server)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ConstraintBroken):
        calls.ask("generate", repair=True, **options)
    why = chats(server)[1].body["messages"][-1]["content"]
    assert why.endswith(told)


# --- maps


def test_a_map_sends_back_what_its_items_say(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(constrained_reply=lambda body: "yes" if len(body["messages"]) > 1 else "maybe")
    items: list[Any] = ["a", {"prompt": "b", "repair": True}, {"prompt": "c", "regex": "[a-z]+"}]
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        done = list(pool.map(items, **YES_NO))
    assert isinstance(done[0].error, ConstraintBroken)
    assert [mapped.text for mapped in done[1:]] == ["yes", "maybe"]
    assert len(chats(server)) == 4  # what is broken is not tried again for ever
    assert calls.used("one").tokens == spent(server)


def test_an_item_that_breaks_everywhere_is_asked_everywhere_once(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    servers = [deaf(fake_server) for _ in range(3)]
    with Calls(tmp_path, *(entry(s, f"e{i}") for i, s in enumerate(servers))).pool() as pool:
        (done,) = pool.map(["a"], **YES_NO)
    assert isinstance(done.error, AllAttemptsFailed)
    assert [len(chats(server)) for server in servers] == [1, 1, 1]


# --- tools


def tick() -> str:
    """Tick."""
    return "tock"


CAN_CALL: dict[str, Any] = {"capabilities": {"tools": True}}


def test_a_stream_that_breaks_in_the_second_step_ends_the_run(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    done: list[str] = []

    def once() -> str:
        """Tick once."""
        done.append("tock")
        server.fail(faults.Cut(after=1), times=None)
        return "tock"

    server = fake_server(tool_calls=[("once", {})])
    calls = Calls(tmp_path, entry(server, "one", **CAN_CALL))
    with calls.pool() as pool, pytest.raises(BackendError):
        pool.get_lm().run_tools("Go", [once])
    assert done == ["tock"]
    assert calls.used("one").held_tokens == 0
    assert_idle(server)


def test_a_tool_may_call_the_pool_itself(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=1, tool_calls=[("ask", {})], reply="Four.")
    calls = Calls(tmp_path, entry(server, "one", **CAN_CALL))
    with calls.pool() as pool:
        lm = pool.get_lm()

        def ask() -> str:
            """Ask."""
            return lm.generate("Two and two?")

        with pytest.raises(ToolStepsExceeded) as caught:
            lm.run_tools("Go", [ask], most_steps=1)
    assert [call.result for call in caught.value.run.calls] == ["Four."]
    assert calls.used("one").held_tokens == 0


def test_an_async_tool_may_call_the_pool_itself(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=1, tool_calls=[("ask", {}), ("ask", {})], reply="Four.")
    calls = Calls(tmp_path, entry(server, "one", **CAN_CALL))

    async def main() -> list[Any]:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()

            async def ask() -> str:
                """Ask."""
                return await lm.generate("Two and two?")

            with pytest.raises(ToolStepsExceeded) as caught:
                await lm.run_tools("Go", [ask], most_steps=1)
            return [call.result for call in caught.value.run.calls]

    assert asyncio.run(main()) == ["Four.", "Four."]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_tool_ends_the_run(
    fake_server: FakeServers, tmp_path: Path, error: type[BaseException]
) -> None:
    def stop() -> str:
        """Stop."""
        raise error

    server = fake_server(tool_calls=[("stop", {})])
    calls = Calls(tmp_path, entry(server, "one", **CAN_CALL))
    with calls.pool() as pool:
        with pytest.raises(error):
            pool.get_lm().run_tools("Go", [stop])
        assert pool.get_lm().generate("Still there?")
    assert calls.used("one").tokens == spent(server)
    assert calls.used("one").held_tokens == 0


def test_a_cancelled_run_stops_its_tools(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(tool_calls=[("wait", {})])
    calls = Calls(tmp_path, entry(server, "one", **CAN_CALL))
    said: list[str] = []

    async def main() -> None:
        begun = asyncio.Event()

        async def wait() -> str:
            """Wait."""
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                said.append("stopped")
            return ""

        async with calls.async_pool() as pool:
            task = asyncio.ensure_future((await pool.get_lm()).run_tools("Go", [wait]))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert said == ["stopped"]
    assert calls.used("one").tokens == spent(server)
    assert len(chats(server)) == 1


def test_the_last_reply_of_a_run_must_obey(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", constrained_reply='{"value":"maybe"}')
    calls = Calls(tmp_path, entry(server, "one", **CAN_CALL))
    with calls.pool() as pool, pytest.raises(ConstraintBroken, match="maybe"):
        pool.get_lm().run_tools("Go", [tick], **YES_NO)


# --- receipts

CANARY = "canaryzebra"
REFUSED = {"choices": [{"message": {"refusal": f"No {CANARY}."}, "finish_reason": "stop"}]}


class Kept:
    """A home on disk, and the receipt of the last call in it."""

    def __init__(self, home: Path, *entries: Any, **parts: Any) -> None:
        self.home = home
        self.registry = make_registry(*entries)
        self.parts: dict[str, Any] = {"home": home, "environ": {}, **parts}

    def pool(self) -> LLMPool:
        return LLMPool(self.registry, **self.parts)

    def last(self) -> Receipt:
        with self.pool() as pool:
            found = ReceiptBook(pool.ledger.database, SystemClock()).last()  # type: ignore[attr-defined]
        assert found is not None
        return found

    def holds(self, word: str) -> bool:
        files = [path for path in self.home.rglob("*") if path.is_file()]
        assert files
        return any(word.encode() in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("options", "fault", "outcome", "words"),
    [
        (YES_NO, None, "constraint_broken", "the reply does not obey the constraint"),
        ({**YES_NO, "repair": True}, None, "constraint_broken", "the reply does not obey the constraint"),
        ({"json_schema": {"type": "object"}}, None, "constraint_broken", "does not obey"),
        ({"choices": [CANARY, "no"], "max_tokens": 1}, None, "cut_off", "raise max_tokens"),
        (YES_NO, faults.Status(200, REFUSED), "content_policy", "the model refused"),
    ],
)
def test_a_receipt_tells_what_became_of_it_and_not_a_word_of_the_reply(
    fake_server: FakeServers,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, Any],
    fault: faults.Fault | None,
    outcome: str,
    words: str,
) -> None:
    caplog.set_level("DEBUG")
    server = fake_server(reply=CANARY)
    if fault is not None:
        server.fail(fault, times=None)
    kept = Kept(tmp_path / "home", entry(server, "one"))
    with kept.pool() as pool, pytest.raises(MaxwellError):
        pool.get_lm().generate("Well?", **options)
    receipt = kept.last()
    assert (receipt.outcome, receipt.attempts[-1].outcome) == (outcome, outcome)
    assert words in receipt.attempts[-1].message
    assert receipt.finish_reason == ("length" if outcome == "cut_off" else "stop")
    assert receipt.attempts[-1].usage is not None
    assert not kept.holds(CANARY)
    assert CANARY not in caplog.text


def test_a_receipt_of_several_that_did_not_obey_does_not_say_that_nobody_answered(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    one, two = (entry(fake_server(reply=CANARY), name) for name in ("one", "two"))
    kept = Kept(tmp_path / "home", one, two)
    with kept.pool() as pool, pytest.raises(AllAttemptsFailed):
        pool.get_lm().generate("Well?", **YES_NO)
    assert kept.last().outcome == "constraint_broken"
    assert not kept.holds(CANARY)


def test_where_content_is_kept_a_broken_reply_is_kept_too(fake_server: FakeServers, tmp_path: Path) -> None:
    kept = Kept(tmp_path / "home", entry(fake_server(reply=CANARY), "one"), log_content=True)
    with kept.pool() as pool, pytest.raises(ConstraintBroken):
        pool.get_lm().generate("Well?", **YES_NO)
    assert kept.last().reply == CANARY
    assert CANARY in kept.last().attempts[0].message
