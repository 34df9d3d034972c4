"""What a map decides, from values alone; and its flow, whose calls go as far as their first request."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from maxwell.calls.effects import Aside, Emit, First, Flow, Gather, Send, Sleep, Start, Stop
from maxwell.calls.map_rules import (
    AHEAD,
    ANY_NUMBER,
    free_slots,
    may_pass,
    may_return,
    may_take,
    room,
    spare,
    work_seconds,
)
from maxwell.calls.mapped import Mapped, Results
from maxwell.calls.mapping import MOST_ROUNDS, mapping
from maxwell.calls.state import PoolState
from maxwell.decision import Decision, Rejected, Request, Scored
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    EmptyReply,
    Fault,
    MaxwellError,
    NoEligibleLM,
    StatusError,
)
from maxwell.health import Health, HealthBook
from maxwell.ledger.memory import MemoryLedger
from maxwell.maps import MapOptions, asked, planned
from maxwell.registry.specs import Capabilities, LLMSpec, Registry
from maxwell.requirements import Needs, PromptOptions
from maxwell.testing.clock import FakeClock
from maxwell.types import Completion, Requirements, Timings, Usage


def llm(name: str, speed: float = 50.0, slots: int | None = 2, **fields: Any) -> LLMSpec:
    capabilities = Capabilities(max_tokens=1000, max_context=8192, speed_tokens_per_sec=speed, slots=slots)
    fields = {"api_base": f"http://{name}", "backend": "vllm"} | fields
    return LLMSpec(name=name, model="m", capabilities=capabilities, default_temperature=0.5, **fields)


def scored(name: str, seconds: float = 10.0, *, spec: LLMSpec | None = None, **more: Any) -> Scored:
    more = {"queue_wait": 0.0, "slots": 2} | more
    return Scored(
        spec=spec or llm(name),
        prompt_tokens=10,
        completion_tokens=100,
        mills=0.0,
        seconds=seconds,
        utilization_bonus=0.5,
        score=0.0,
        speed=50.0,
        context=8192,
        **more,
    )


def completion(text: str = "done", **more: Any) -> Completion:
    more = {"finish_reason": "stop"} | more
    return Completion(
        text=text, usage=Usage(1, 1), cost_usd=0.0, timings=Timings(total_seconds=1.0), llm="a", **more
    )


def failure(kind: Fault = "refused", llm: str = "a") -> BackendError:
    return StatusError("it failed", llm=llm, kind=kind)


# --- how many calls at once


def test_there_is_room_for_every_free_slot() -> None:
    assert room([scored("a", slots=2), scored("b", slots=3)], 0, None) == 5


def test_entries_of_one_server_share_its_slots() -> None:
    twin = scored("b", spec=llm("b", api_base="http://a/v1"), slots=2)
    assert room([scored("a", slots=2), twin], 0, None) == 2


def test_a_server_that_takes_any_number_counts_with_a_fixed_one() -> None:
    assert room([scored("a", slots=None), scored("b", slots=1)], 0, None) == ANY_NUMBER + 1


def test_slots_that_others_use_are_left_to_them() -> None:
    ranked = [scored("a", slots=4, in_flight=3.0), scored("b", slots=4, in_flight=1.5)]
    assert room(ranked, 0, None) == 3
    assert room(ranked, 2, None) == 5  # two of those are calls of this map
    assert room(ranked, 8, None) == 8


@pytest.mark.parametrize("ranked", [[], [scored("a", slots=2, in_flight=9.0)]], ids=["nobody", "all busy"])
def test_there_is_always_room_for_one(ranked: list[Scored]) -> None:
    assert room(ranked, 0, None) == 1


def test_the_caller_may_want_fewer_but_gets_no_more() -> None:
    assert room([scored("a", slots=4)], 0, 3) == 3
    assert room([scored("a", slots=4)], 0, 30) == 4


def test_a_slow_reader_is_not_worked_for_in_advance() -> None:
    assert may_take(ready=1, ahead=2, most=1)  # or the only slot would idle while the first is read
    assert not may_take(ready=2, ahead=2, most=1)


def test_items_ahead_of_their_turn_are_bounded() -> None:
    assert may_take(ready=0, ahead=4 * AHEAD - 1, most=4)
    assert not may_take(ready=0, ahead=4 * AHEAD, most=4)


# --- what is worth another call


@pytest.mark.parametrize(
    ("kind", "passes"),
    [
        ("refused", True),
        ("timeout", True),
        ("loading", True),
        ("overloaded", True),
        ("rate_limited", True),
        ("server_error", True),
        ("broken_stream", True),
        ("quota", False),
        ("auth", False),
        ("model_missing", False),
        ("context_overflow", False),
        ("unsupported", False),
        ("bad_request", False),
        ("content_policy", False),
        ("bad_reply", False),
    ],
)
def test_only_what_the_servers_did_may_pass(kind: Fault, passes: bool) -> None:
    assert may_pass(failure(kind)) == passes
    assert may_pass(AllAttemptsFailed([failure("auth"), failure(kind, "b")])) == passes


def test_a_request_that_is_at_fault_is_not_made_again_whatever_else_happened() -> None:
    assert not may_pass(AllAttemptsFailed([failure("refused"), failure("bad_request", "b")]))


def test_other_errors_do_not_pass() -> None:
    assert not may_pass(ValueError("no"))
    assert not may_pass(NoEligibleLM("nobody"))


@pytest.mark.parametrize(
    ("reasons", "returns"),
    [(["tags", "down"], True), (["failing"], True), (["tags", "key"], False), ([], False)],
)
def test_a_server_that_was_down_may_return(reasons: list[Any], returns: bool) -> None:
    rejected = tuple(Rejected(llm("a"), reason) for reason in reasons)
    decision = Decision(ranked=(), rejected=rejected, request=Request(needs=Requirements()), by="score")
    assert may_return(NoEligibleLM("nobody", decision)) == returns
    assert not may_return(NoEligibleLM("nobody"))


# --- who might be done sooner


def test_waiting_is_not_work() -> None:
    s = scored("a", 25.0, queue_wait=3.0, ready_in=1.0, occupancy=5.0, slowdown=2.0)
    assert work_seconds(s) == 25.0 - 5.0 - 2 * 4.0


def test_the_soonest_idle_free_server_may_double_a_call() -> None:
    ranked = [scored("a", 1.0), scored("b", 8.0), scored("c", 5.0), scored("d", 6.0)]
    found = spare(ranked, "http://a", 5.5, {})
    assert found is not None
    assert found.spec.name == "c"


@pytest.mark.parametrize(
    "other",
    [
        scored("b", 5.5),
        scored("b", spec=llm("b", api_base="http://a/v1")),
        scored("b", 1.0, in_flight=2.0),
        scored("b", 1.0, slots=None, in_flight=float(ANY_NUMBER)),
        scored("b", 1.0, queue_wait=0.5),
        scored("b", 1.0, ready_in=0.5),
        scored("b", 1.0, spec=llm("b", cost_per_1k_tokens=0.1)),
        scored("b", 1.0, spec=llm("b", daily_budget_tokens=1_000_000)),
    ],
    ids=["no sooner", "same server", "no slot", "enough", "a queue", "not ready", "paid", "with a budget"],
)
def test_others_may_not(other: Scored) -> None:
    assert spare([scored("a", 1.0), other], "http://a", 5.5, {}) is None


def test_slots_that_are_promised_are_not_idle() -> None:
    ranked = [scored("b", 1.0, slots=2, in_flight=1.0)]
    assert spare(ranked, "http://a", 5.5, {"http://b": 1}) is None
    assert spare(ranked, "http://a", 5.5, {"http://c": 1}) is not None


# --- which result is next


def results(ordered: bool, *indexes: int) -> Results:
    found = Results(ordered=ordered)
    for index in indexes:
        found.add(Mapped(index=index, item=str(index), completion=completion()))
    return found


def handed_out(found: Results) -> list[int]:
    return [found.next().index for _ in range(found.ready()) if found.has_next()]


def test_in_order_the_next_one_is_waited_for() -> None:
    found = results(True, 1, 2)
    assert (found.has_next(), found.ready()) == (False, 0)
    found.add(Mapped(index=0, item="", error=failure()))
    assert (found.has_next(), handed_out(found), found.done, found.failed) == (True, [0, 1, 2], 3, 1)


def test_as_they_come_results_keep_the_order_in_which_they_came() -> None:
    assert handed_out(results(False, 5, 2, 9)) == [5, 2, 9]


def test_a_result_has_a_text_or_raises() -> None:
    assert Mapped(index=0, item="", completion=completion("hello")).text == "hello"
    error = failure()
    with pytest.raises(StatusError) as raised:
        _ = Mapped(index=0, item="", error=error).text
    assert raised.value is error
    with pytest.raises(EmptyReply):
        _ = Mapped(index=0, item="", completion=completion("", finish_reason="length")).text


# --- what an item asks


def test_every_requirement_and_option_may_be_given() -> None:
    known = (set(Needs.__annotations__) | set(PromptOptions.__annotations__)) - {"prompt"}
    assert set(MapOptions.__annotations__) == known


def test_a_prompt_is_a_conversation_of_one() -> None:
    item = asked("Hi", {"system_prompt": "Be brief.", "max_tokens": 5, "tags": ["x"], "timeout": 3.0})
    assert [m["content"] for m in item.chat.messages] == ["Be brief.", "Hi"]
    assert (item.chat.max_tokens, item.needs.tags, item.prompt, item.seconds) == (5, ("x",), "Hi", 3.0)


def test_messages_are_sent_as_they_are() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    item = asked(messages, {"system_prompt": "Be brief."})
    assert (item.chat.messages, item.prompt) == (messages, None)


def test_an_items_own_options_come_first() -> None:
    item = asked(
        {"prompt": "Hi", "max_tokens": 7, "tags": ["y"]}, {"max_tokens": 5, "seed": 1, "tags": ["x"]}
    )
    assert (item.chat.max_tokens, item.chat.seed, item.needs.tags) == (7, 1, ("y",))


def test_tools_are_a_requirement_or_definitions() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert asked("Hi", {"tools": True}).needs.tools is True
    assert asked("Hi", {"tools": False}).request().needs.tools is False
    assert asked("Hi", {"tools": tools}).chat.tools == tools
    assert asked("Hi", {"tools": tools}).request().needs.tools is True


def test_the_choice_is_made_for_what_the_item_needs() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    item = asked(
        [{"role": "user", "content": [{"type": "text", "text": "ä" * 50}, image]}], {"max_tokens": 9}
    )
    request = item.request()
    assert (request.prompt_bytes, request.needs.vision, request.needs.max_completion) == (100, True, 9)
    assert request.extra_tokens > 1000
    assert asked("Hi", {"grammar": 'root ::= "x"'}).request().features.constraint


WRONG_ITEMS: list[Any] = [
    None,
    7,
    b"Hi",
    "",
    "  ",
    [],
    ["Hi"],
    {},
    {"prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]},
    {"role": "user", "content": "Hi"},
    {"prompt": "Hi", "temperatur": 0.1},
    {"prompt": "Hi", "temperature": 9},
    {"prompt": "Hi", "time_cost_weight": 11},
    {"messages": [{"role": "user", "content": "Hi"}], "system_prompt": "Be brief."},
]


@pytest.mark.parametrize("item", WRONG_ITEMS, ids=repr)
def test_a_wrong_item_says_what_is_wrong(item: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"\w+ \w+"):
        asked(item, {})


@pytest.mark.parametrize(
    ("items", "more", "words"),
    [
        ("one prompt", {}, "items must be"),
        ({"prompt": "Hi"}, {}, "items must be"),
        (7, {}, "items must be"),
        (["Hi"], {"at_most": 0}, "at_most must be"),
        (["Hi"], {"at_most": 1.5}, "at_most must be"),
        (["Hi"], {"at_most": True}, "at_most must be"),
        (["Hi"], {"progress": 7}, "progress must be"),
        (["Hi"], {"options": {"temperatur": 0.1}}, "did you mean temperature"),
        (["Hi"], {"options": {"min_speed": -1}}, "min_speed must be"),
        (["Hi"], {"options": {"timeout": 0}}, "timeout must be"),
    ],
)
def test_what_is_wrong_for_all_items_is_said_at_once(items: Any, more: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "ordered": True,
        "at_most": None,
        "patience": 1.0,
        "progress": None,
        "options": {},
    }
    arguments |= more
    with pytest.raises((TypeError, ValueError), match=words):
        planned(items, arguments.pop("options"), **arguments)


def test_options_that_can_be_gone_through_only_once_hold_for_every_item() -> None:
    options = {"tags": iter(["x"]), "stop": iter(["."])}
    plan = planned(["a", "b"], options, ordered=True, at_most=None, patience=0.0, progress=None)
    for item in plan.items:
        assert (plan.read(item).needs.tags, plan.read(item).chat.stop) == (("x",), ["."])


# --- the flow


class FakeHandle:
    """A started call: it goes as far as the first request that it sends, and ends as the test says.

    Attributes:
        url: Where it sent its request; "" while it is held back.
        prompt: What it sent.
    """

    def __init__(self, flow: Flow[Any]) -> None:
        self.flow = flow
        self.done = self.stopped = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.url = self.prompt = ""
        self.go_on()

    def go_on(self) -> None:
        """Send the request, unless there still is no slot for it."""
        answer: Any = None
        try:
            while isinstance(effect := self.flow.send(answer), Aside):
                answer = effect.work()
        except MaxwellError as error:
            self.end(error=error)
            return
        if isinstance(effect, Send):
            self.url, self.prompt = effect.request.url, effect.request.body.decode()
        else:
            assert isinstance(effect, Sleep), effect

    def end(self, result: Any = None, error: BaseException | None = None) -> None:
        self.flow.close()
        self.done, self.result, self.error = True, result, error


class Desk:
    """Runs a map by hand. Time stands still; waits are over when the test looks again.

    Attributes:
        calls: Every call that was started.
        out: What was handed out.
        is_over: Whether the map has ended.
    """

    def __init__(self, items: Iterable[Any], *specs: LLMSpec, state: PoolState | None = None, **more: Any):
        self.state = state or pool(*specs)
        options = more.pop("options", {})
        arguments: dict[str, Any] = {
            "ordered": True,
            "at_most": None,
            "patience": 0.0,
            "progress": None,
        } | more
        self.flow = mapping(self.state, planned(items, options, **arguments))
        self.calls: list[FakeHandle] = []
        self.out: list[Mapped] = []
        self.is_over = False
        self.asked_everybody = 0
        self._answer: Any = None
        self.look()

    def look(self) -> list[FakeHandle]:
        """Let the flow go on until it waits for a call to end; the calls under way then."""
        for call in self.under_way():
            if not call.url:
                call.go_on()
        while True:
            try:
                effect = self.flow.send(self._answer)
            except StopIteration:
                self.is_over = True
                return []
            self._answer = None
            if isinstance(effect, First):
                self._answer = [handle for handle in effect.handles if handle.done]
                if effect.handles and not self._answer and effect.seconds:
                    return self.under_way()
            else:
                self._perform(effect)

    def _perform(self, effect: Any) -> None:
        if isinstance(effect, Start):
            self.calls.append(FakeHandle(effect.flow))
            self._answer = self.calls[-1]
        elif isinstance(effect, Emit):
            self.out.append(effect.value)
        elif isinstance(effect, Stop):
            assert isinstance(effect.handle, FakeHandle)
            effect.handle.stopped = True
            effect.handle.end()
        else:
            assert isinstance(effect, Gather), effect
            self.asked_everybody += 1
            self._answer = [None] * len(effect.flows)

    def under_way(self) -> list[FakeHandle]:
        return [call for call in self.calls if not call.done]

    def end(self, call: FakeHandle, text: str = "done", error: BaseException | None = None) -> None:
        """Let a call end, and the flow see it."""
        call.end(None if error else completion(text), error)
        self.look()

    def servers(self) -> list[str]:
        """Where the calls under way are, by host."""
        return sorted(call.url.split("/")[2] for call in self.under_way() if call.url)

    @property
    def texts(self) -> list[str]:
        return [mapped.text for mapped in self.out]


def pool(*specs: LLMSpec) -> PoolState:
    """A pool where everybody is up."""
    clock = FakeClock()
    registry = Registry(llms=specs or (llm("a"),), embeddings=(), budget_timezone="UTC")
    state = PoolState(
        registry, health=HealthBook(None, clock), ledger=MemoryLedger(), clock=clock, environ={}
    )
    for entry in state.llms:
        tell(state, entry.spec.name)
    return state


def tell(state: PoolState, name: str, health: Any = "up") -> None:
    state.health.put(state.llm(name).endpoint, Health(state=health, at=state.clock.time()))


def advance(state: PoolState, seconds: float) -> None:
    """Let time pass; everybody stays up."""
    assert isinstance(state.clock, FakeClock)
    state.clock.advance(seconds)
    for entry in state.llms:
        tell(state, entry.spec.name)


def numbers() -> Iterator[str]:
    for i in itertools.count():
        yield f"item {i}"


def test_no_items_are_no_calls() -> None:
    desk = Desk([])
    assert (desk.is_over, desk.out, desk.calls) == (True, [], [])


def test_as_many_calls_run_as_there_are_slots_and_each_end_makes_room() -> None:
    desk = Desk([f"item {i}" for i in range(5)], llm("a", 60), llm("b", 50, slots=1))
    assert desk.servers() == ["a", "a", "b"]
    desk.end(desk.calls[2])
    assert desk.servers() == ["a", "a", "b"]
    assert len(desk.calls) == 4
    while desk.under_way():
        desk.end(desk.under_way()[0])
    assert desk.is_over
    assert [mapped.index for mapped in desk.out] == list(range(5))
    assert [mapped.item for mapped in desk.out] == [f"item {i}" for i in range(5)]


def test_results_come_in_order_or_as_they_come() -> None:
    for ordered, expected in ((True, [0, 1, 2]), (False, [2, 1, 0])):
        desk = Desk(["a", "b", "c"], llm("a", slots=3), ordered=ordered)
        for call in reversed(desk.calls):
            desk.end(call)
        assert [mapped.index for mapped in desk.out] == expected


def test_items_are_taken_when_there_is_room_for_them() -> None:
    taken = 0

    def items() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield f"item {taken}"

    desk = Desk(items(), llm("a", slots=2))
    for n in range(2, 20):
        assert taken == n
        desk.end(desk.under_way()[0])
    desk.flow.close()


def test_one_slow_item_stops_the_others_only_after_a_while() -> None:
    desk = Desk(numbers(), llm("a", slots=2))
    for _ in range(2 * AHEAD - 2):
        desk.end(desk.under_way()[1])
    assert len(desk.under_way()) == 2
    desk.end(desk.under_way()[1])
    assert len(desk.under_way()) == 1
    assert desk.out == []
    desk.end(desk.calls[0])
    assert len(desk.out) == 2 * AHEAD
    desk.flow.close()


def test_nothing_is_doubled_while_there_are_items_left() -> None:
    desk = Desk(numbers(), llm("fast", 60, slots=1), llm("slow", 40, slots=1))
    for _ in range(2 * AHEAD):
        fast = [call for call in desk.under_way() if "fast" in call.url]
        if not fast:
            break
        desk.end(fast[0])
    assert desk.servers() == ["slow"]  # it holds up all results, and no more items may be taken
    desk.flow.close()


def test_a_wrong_item_is_its_own_error() -> None:
    desk = Desk(["a", 7, {}, "b"], llm("a", slots=2))
    assert len(desk.calls) == 2
    for call in desk.calls:
        desk.end(call)
    assert [type(mapped.error) for mapped in desk.out] == [type(None), TypeError, ValueError, type(None)]
    assert [mapped.item for mapped in desk.out] == ["a", 7, {}, "b"]
    # A traceback would keep everything alive that the call had in hand.
    assert [e.__traceback__ for mapped in desk.out if (e := mapped.error)] == [None, None]


def test_progress_is_told_of_every_item() -> None:
    told: list[tuple[int, int, int | None]] = []
    desk = Desk(["a", 7, "b"], llm("a", slots=1), progress=lambda *n: told.append(n))
    desk.end(desk.calls[0])
    desk.end(desk.calls[1], error=failure("auth"))
    assert told == [(1, 0, 3), (2, 1, 3), (3, 2, 3)]
    told.clear()
    desk = Desk(iter(["a"]), progress=lambda *n: told.append(n))
    desk.end(desk.calls[0])
    assert told == [(1, 0, None)]


def test_what_progress_raises_ends_the_map() -> None:
    def refuse(*_: object) -> None:
        raise LookupError("enough")

    desk = Desk(["a", "b"], llm("a", slots=2), progress=refuse)
    with pytest.raises(LookupError, match="enough"):
        desk.end(desk.calls[0])


def test_what_the_items_raise_ends_the_map() -> None:
    def broken() -> Iterator[str]:
        yield "a"
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        Desk(broken(), llm("a", slots=2))


def test_a_bug_is_not_the_result_of_an_item() -> None:
    desk = Desk(["a"])
    with pytest.raises(AttributeError, match="a bug"):
        desk.end(desk.calls[0], error=AttributeError("a bug"))


def test_nobody_eligible_is_the_error_of_each_item() -> None:
    desk = Desk(["a", "b"], llm("a"), options={"tags": ["none"]})
    assert desk.is_over
    assert [type(mapped.error) for mapped in desk.out] == [NoEligibleLM, NoEligibleLM]
    assert desk.asked_everybody == 0


def test_what_a_server_let_down_is_called_for_again_and_first() -> None:
    desk = Desk(["a", "b", "c"], llm("a", slots=2))
    desk.end(desk.calls[0], error=failure("server_error"))
    assert [call.prompt.count('"a"') for call in desk.calls] == [1, 0, 1]
    first, second = desk.under_way()
    for call in (first, second):
        call.end(error=failure("server_error"))
    desk.look()
    assert [call.prompt.count('"b"') for call in desk.under_way()] == [1, 0]
    while desk.under_way():
        desk.end(desk.under_way()[0])
    assert [mapped.index for mapped in desk.out] == [0, 1, 2]
    assert all(mapped.error is None for mapped in desk.out)


def test_an_item_is_called_for_three_times_at_most() -> None:
    desk = Desk(["a"])
    errors = [failure("server_error") for _ in range(MOST_ROUNDS)]
    for n, error in enumerate(errors, 1):
        assert len(desk.calls) == n
        desk.end(desk.calls[-1], error=error)
    assert desk.is_over
    assert [mapped.error for mapped in desk.out] == errors[-1:]


@pytest.mark.parametrize(
    "error",
    [
        failure("bad_request"),
        failure("auth"),
        EmptyReply(completion("")),
        ValueError("not to be encoded"),
    ],
    ids=lambda error: str(error)[:20],
)
def test_what_cannot_be_mended_is_not_called_for_again(error: Exception) -> None:
    desk = Desk(["a"])
    desk.end(desk.calls[0], error=error)
    assert (desk.is_over, [mapped.error for mapped in desk.out]) == (True, [error])


def test_a_spent_budget_is_the_error_of_its_item() -> None:
    desk = Desk(["a", "b"], llm("a", slots=1))
    error = BudgetExceeded("a", left=1, unit="tokens", resets_at=desk.state.resets_at())
    desk.end(desk.calls[0], error=error)
    desk.end(desk.calls[1])
    assert [mapped.error for mapped in desk.out] == [error, None]


def test_an_items_time_counts_from_its_first_call() -> None:
    desk = Desk(["a", "b"], llm("a", slots=1), options={"timeout": 10.0})
    advance(desk.state, 9.0)
    desk.end(desk.calls[0], error=failure("timeout"))
    assert len(desk.calls) == 2  # there is a second left
    advance(desk.state, 1.0)
    error = failure("timeout")
    desk.end(desk.calls[1], error=error)
    assert [mapped.error for mapped in desk.out] == [error]
    desk.end(desk.calls[2])  # the second item's time has only begun
    assert desk.is_over


def test_where_nobody_is_left_everybody_is_asked_once_more() -> None:
    desk = Desk(["a", "b"], llm("a", slots=1))
    tell(desk.state, "a", "down")
    error = failure("refused")
    desk.end(desk.calls[0], error=error)
    assert desk.is_over
    assert [mapped.error for mapped in desk.out][:1] == [error]
    assert type(desk.out[1].error) is NoEligibleLM
    assert desk.asked_everybody == 1  # not again in the same second


def nobody() -> NoEligibleLM:
    rejected = (Rejected(llm("a"), "down"),)
    decision = Decision(ranked=(), rejected=rejected, request=Request(needs=Requirements()), by="score")
    return NoEligibleLM("nobody", decision)


def test_while_others_are_at_work_it_is_not_over_for_those_whom_nobody_could_take() -> None:
    desk = Desk(["a", "b", "c"], llm("a", slots=2))
    for _ in range(2 * MOST_ROUNDS):
        tell(desk.state, "a", "down")
        desk.end(desk.under_way()[1], error=nobody())
        assert len(desk.under_way()) == 1  # nobody is asked for it now
        tell(desk.state, "a")
        desk.look()
    tell(desk.state, "a", "down")
    for call in desk.under_way():
        call.end(error=nobody())
    desk.look()
    assert desk.is_over
    assert [type(mapped.error) for mapped in desk.out] == [NoEligibleLM] * 3


def test_a_server_that_is_back_goes_on() -> None:
    desk = Desk(["a"], llm("a"))
    perform = desk._perform

    def come_back(effect: Any) -> None:
        perform(effect)
        if isinstance(effect, Gather):
            tell(desk.state, "a")

    desk._perform = come_back  # type: ignore[method-assign]
    tell(desk.state, "a", "down")
    desk.end(desk.calls[0], error=failure("refused"))
    assert len(desk.under_way()) == 1
    desk.end(desk.calls[1])
    assert desk.texts == ["done"]


# --- doubles


def slow_and_fast(**fast: Any) -> Desk:
    """One call at each of two servers; then the fast one is done, and there is nothing left to do."""
    desk = Desk(["a", "b"], llm("fast", 60, slots=1, **fast), llm("slow", 40, slots=1))
    assert desk.servers() == ["fast", "slow"]
    (first,) = [call for call in desk.calls if "fast" in call.url]
    desk.end(first, "first")
    return desk


def test_an_idle_server_is_given_what_a_slower_one_works_on() -> None:
    desk = slow_and_fast()
    assert desk.servers() == ["fast", "slow"]
    slow, double = desk.under_way()
    assert slow.prompt == double.prompt
    desk.end(double, "double")
    assert (slow.stopped, desk.is_over) == (True, True)
    assert sorted(desk.texts) == ["double", "first"]


def test_the_one_who_had_it_may_still_be_first() -> None:
    desk = slow_and_fast()
    slow, double = desk.under_way()
    desk.end(slow, "slow")
    assert (double.stopped, desk.is_over) == (True, True)
    assert sorted(desk.texts) == ["first", "slow"]


def test_two_that_end_together_are_one_result() -> None:
    desk = slow_and_fast()
    slow, double = desk.under_way()
    slow.end(completion("slow"))
    desk.end(double, "double")
    assert (desk.is_over, len(desk.out)) == (True, 2)


def test_a_double_that_fails_leaves_the_first_call_alone_and_is_the_only_one() -> None:
    desk = slow_and_fast()
    slow, double = desk.under_way()
    desk.end(double, error=failure("server_error"))
    advance(desk.state, 1000.0)
    desk.look()
    assert desk.under_way() == [slow]
    desk.end(slow, "slow")
    assert sorted(desk.texts) == ["first", "slow"]


def test_an_item_that_both_calls_failed_for_has_another_round() -> None:
    desk = slow_and_fast()
    slow, double = desk.under_way()
    desk.end(slow, error=failure("server_error"))
    assert desk.under_way() == [double]
    desk.end(double, error=failure("server_error"))
    (again,) = desk.under_way()
    desk.end(again, "again")
    assert sorted(desk.texts) == ["again", "first"]


@pytest.mark.parametrize("why", [{"cost_per_1k_tokens": 0.001}, {"daily_budget_tokens": 1_000_000}])
def test_what_costs_or_has_a_budget_is_never_asked_twice(why: dict[str, Any]) -> None:
    desk = slow_and_fast(**why)
    advance(desk.state, 1000.0)
    desk.look()
    assert desk.servers() == ["slow"]
    desk.flow.close()


def test_what_runs_where_it_costs_is_not_doubled_either() -> None:
    desk = Desk(
        ["a", "b"],
        llm("free", 60, slots=1),
        llm("paid", 40, slots=1, cost_per_1k_tokens=0.001),
        options={"time_cost_weight": 10.0},
    )
    assert desk.servers() == ["free", "paid"]
    desk.end(next(call for call in desk.calls if "free" in call.url))
    advance(desk.state, 1000.0)
    desk.look()
    assert desk.servers() == ["paid"]
    desk.flow.close()


def test_equal_servers_double_only_what_is_far_overdue() -> None:
    desk = Desk(["a", "b"], llm("one", slots=1), llm("two", slots=1))
    desk.end(desk.calls[0])
    assert len(desk.under_way()) == 1
    advance(desk.state, 200.0)  # of some 10 s that were expected
    desk.look()
    assert desk.servers() == ["one", "two"]
    desk.flow.close()


def test_doubles_do_not_pass_the_callers_limit() -> None:
    desk = Desk(
        ["a", "b"], llm("fast", 60, slots=1), llm("slow", 40, slots=1), at_most=1, options={"tags": []}
    )
    assert desk.servers() == ["fast"]
    desk.end(desk.calls[0])
    assert desk.servers() == ["fast"]
    desk.flow.close()


def test_a_map_left_early_leaves_nothing_behind() -> None:
    desk = Desk(numbers(), llm("a", slots=3))
    desk.flow.close()
    for call in desk.under_way():
        call.end()
    assert desk.state.flights.loads() == {}


def test_free_slots_are_counted_once_a_server() -> None:
    ranked = [
        scored("a", in_flight=1.5),
        scored("b", in_flight=5.0),
        scored("cloud", slots=None),
        scored("c", spec=llm("c", api_base="http://shared:1")),
        scored("d", spec=llm("d", api_base="http://shared:1")),
    ]
    assert free_slots(ranked) == 0.5 + 0 + ANY_NUMBER + 2
    assert free_slots([]) == 0
