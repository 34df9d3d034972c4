"""One exchange with one LLM, fully accounted for however it ends."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from maxwell.backends.base import Backend, Compiled
from maxwell.calls.accounts import Account
from maxwell.calls.admission import Place
from maxwell.calls.asking import Asking, ask
from maxwell.calls.counting import COUNT_LIMITS, chat_tokens
from maxwell.calls.effects import Emit, Flow, Limits, TransportError
from maxwell.calls.entries import Entry
from maxwell.calls.failures import broken, transport_failure
from maxwell.calls.reply import Reply
from maxwell.calls.samples import Sent, sample_of
from maxwell.calls.state import PoolState, has_budget
from maxwell.calls.verdict import judged
from maxwell.errors import BackendError, ConstraintBroken, StatusError, StreamBroken
from maxwell.receipts.record import Record
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.scheduler import LEAST_COMPLETION
from maxwell.tokens import PromptSize, upper_bound
from maxwell.types import ChatCall, Completion, Features

# Silence before the first content that is a fault of the server: so many times what is expected, but not less
# than this, in seconds. Declared speeds of reading may be far off, so more while nothing has been learned.
SILENCE_FACTOR = 3.0
LEAST_SILENCE, LEAST_SILENCE_UNLEARNED = 60.0, 300.0
LEARNED = 5  # observations
# Where another one could answer, so much of the time left is given to the first content, or so many
# times what is expected.
SHARE_OF_TIME, SHARE_FACTOR = 0.5, 2.0
# Seconds; a caller who does not wait so long learns nothing of a server that is silent: where it is known how
# soon its first word usually comes, and where it is not.
IMPATIENT, UNLEARNED = 0.5, 5.0


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and what every attempt of one call has in common.

    Attributes:
        chat: What to ask.
        size: Its size.
        features: What it asks of a server beyond writing text.
        key: What kind of reply it will have.
        prefix: Marks of its beginning.
        most: Completion tokens that were asked for when choosing; None = not said.
        bytes_per_token: What the prompt's counting came to when choosing; None = it was not counted.
        deadline: When the whole call must be over, on the monotonic clock; None = never.
        shares_time: Whether time must be left for somebody else.
        emit: Whether text is to be emitted as it comes.
        measuring: Whether its size says nothing of usual calls.
        tried: Entries asked so far, the present one last.
        record: The call's receipt.
    """

    chat: ChatCall
    size: PromptSize
    features: Features
    key: str
    prefix: tuple[int, ...]
    most: int | None
    bytes_per_token: float | None
    deadline: float | None
    shares_time: bool
    emit: bool
    measuring: bool
    tried: Sequence[str]
    record: Record


def attempt(state: PoolState, place: Place, task: Task) -> Flow[Completion]:
    """Ask the server of `place`; the reply is complete and booked when this returns.

    Raises:
        BackendError: It failed; `StreamBroken` once content had begun, `ConstraintBroken` where
            it does not obey.
        ReplyCutOff: The tokens ran out before a constrained reply was complete.
        BudgetExceeded: The entry's budget has no room for it.
        LedgerError: The entry has a budget and the books cannot be kept.
    """
    entry, chat = place.entry, task.chat
    spec = entry.spec
    assert isinstance(spec, LLMSpec)
    backend = entry.backend(state.known(entry))
    _check_possible(state, entry, task.features)
    compiled = backend.compiled(spec, chat)
    thinking = _thinking(spec, chat) if compiled.thinks else 0
    likely, cap = yield from _sizes(state, place, backend, task, thinking or 0)
    account = Account(state, spec, task.record)
    now = state.clock.monotonic
    reply = Reply(spec, likely, now(), task.record.id)
    patience = _patience(state, place, likely, task, now())
    used = sent = False
    cut = True
    try:
        yield from _reserve(state, entry, backend, task, account, cap)
        room = None if thinking is None else _room(thinking, account.max_tokens, _reply_tokens(spec, task))
        capped = msgspec.structs.replace(chat, max_tokens=account.max_tokens, thinking_tokens=room)
        request = backend.chat(spec, capped, entry.endpoint.key)
        yield from account.send()
        used = sent = True  # from here on the server may be working for us, whatever becomes of this call
        reply.began = now()
        asking = Asking(
            request=request,
            limits=_limits(state, spec, task.deadline, patience),
            silent_until=reply.began + patience.seconds,
            emit=task.emit and not compiled.wrapped,
        )
        yield from ask(state, entry, backend, asking, reply)
        usage = account.sure(reply.usage, cut=False)
        usd = account.settle(usage)
        used = cut = False  # and booked
    except TransportError as error:
        used = error.stage not in ("refused", "connect")
        cut = False
        failure = broken(
            transport_failure(spec.name, error), reply, account.sure(reply.usage, cut=True), now(), task.tried
        )
        _note_silence(state, entry, failure, task, error, patience, now() - reply.began)
        _learn(state, place, task, reply, failed=True)
        raise failure from error
    except BackendError as error:
        used = reply.opened  # a server that refuses has not worked
        cut = False
        failure = broken(error, reply, account.sure(reply.usage, cut=True), now(), task.tried)
        note(state, entry, failure, task.record)
        if sent:
            _learn(state, place, task, reply, failed=True)
        if failure is error:
            raise
        raise failure from error
    finally:
        # Every way out but success, cancelled and abandoned calls included, books what was seen here, or
        # gives the money back where nothing was used.
        if used:
            account.settle(account.sure(reply.usage, cut=True))
        else:
            account.release()
        if sent and cut:  # the caller has left
            _learn(state, place, task, reply, cut=True)
    took = state.health.note_success(entry.endpoint)
    state.note_read(place.candidate, task.prefix)
    _learn(state, place, task, reply, load_seconds=took or entry.load_to_learn(state.known(entry)))
    whole = reply.completion(now(), list(task.tried), usage, usd)
    done = _judged(state, whole, chat, compiled, refused=reply.refused)
    if task.emit and done.text and (compiled.wrapped or not whole.text):
        yield Emit(done.text)  # it was not there to be emitted before
    return done


def note(
    state: PoolState, entry: Entry, failure: BackendError, record: Record, *, at_once: bool = False
) -> None:
    """What the failure says of the server, for everybody."""
    words = record.words_of(failure)
    state.health.note_fault(entry.endpoint, failure.kind, words, failure.retry_after, at_once=at_once)


class Patience(msgspec.Struct, frozen=True):
    """How long a server may be silent before its first content.

    Attributes:
        seconds: So long.
        own: Whether that is Maxwell's own measure; else the caller has no more time.
        expected: How long it is expected to be, in seconds.
        is_learned: Whether that rests on observations.
    """

    seconds: float
    own: bool
    expected: float
    is_learned: bool


def _patience(state: PoolState, place: Place, prompt_tokens: int, task: Task, now: float) -> Patience:
    candidate = place.candidate
    speeds = state.speeds_of(place.entry)
    is_learned = speeds is not None and speeds.seen.overhead >= LEARNED
    waking = candidate.ready_in if candidate.state == "asleep" else 0.0
    expected = candidate.overhead + waking + prompt_tokens / candidate.prefill
    least = LEAST_SILENCE if is_learned else LEAST_SILENCE_UNLEARNED
    seconds = max(least, SILENCE_FACTOR * candidate.slowdown * expected)
    if task.deadline is None:
        return Patience(seconds, True, expected, is_learned)
    left = max(task.deadline - now, 0.001)
    if task.shares_time:
        left = min(max(SHARE_OF_TIME * left, SHARE_FACTOR * expected), left)
    return Patience(min(seconds, left), seconds <= left, expected, is_learned)


def _limits(state: PoolState, spec: LLMSpec, deadline: float | None, patience: Patience) -> Limits:
    limits = limits_for(state, spec, deadline)
    return msgspec.structs.replace(
        limits, first_byte=patience.seconds, connect=min(limits.connect or patience.seconds, patience.seconds)
    )


def _note_silence(  # noqa: PLR0913 - everything that is known of one failure
    state: PoolState,
    entry: Entry,
    failure: BackendError,
    task: Task,
    error: TransportError,
    patience: Patience,
    elapsed: float,
) -> None:
    """A server that was silent for as long as it may is out at once; an impatient caller proves nothing."""
    if error.stage in ("refused", "closed"):
        note(state, entry, failure, task.record)
        return
    if error.stage == "connect" and patience.own:
        note(state, entry, failure, task.record, at_once=True)
        return
    is_over = error.stage == "total" and task.deadline is not None
    if (error.stage == "idle" or patience.own) and not is_over:
        note(state, entry, failure, task.record, at_once=True)
    elif isinstance(failure, StreamBroken):
        return  # it was writing when the caller's time ran out
    elif elapsed > max(SILENCE_FACTOR * patience.expected, IMPATIENT if patience.is_learned else UNLEARNED):
        note(state, entry, failure, task.record)


def _learn(  # noqa: PLR0913 - how it ended, three ways
    state: PoolState,
    place: Place,
    task: Task,
    reply: Reply,
    *,
    cut: bool = False,
    failed: bool = False,
    load_seconds: float | None = None,
) -> None:
    """Keep what this reply teaches of its entry."""
    entry, candidate, size = place.entry, place.candidate, task.size
    assert isinstance(entry.spec, LLMSpec)
    has_more = size.images or task.chat.tools
    sent = Sent(
        prompt_bytes=None if has_more else size.text_bytes,
        messages=size.messages,
        key=task.key,
        running=round(candidate.in_flight) if entry.is_counted(state.known(entry)) else None,
        queued=candidate.slots is not None and candidate.in_flight >= candidate.slots,
        asleep=candidate.state == "asleep",
    )
    sample = sample_of(reply, sent, state.clock.monotonic(), cut=cut, failed=failed)
    if sample is not None:
        sample = msgspec.structs.replace(sample, load_seconds=load_seconds, unusual=task.measuring)
        state.teach(entry, sample)


def _reserve(
    state: PoolState, entry: Entry, backend: Backend, task: Task, account: Account, completion: int
) -> Flow[None]:
    """Open the account for the worst case; an entry without a budget needs none."""
    chat = task.chat
    prompt = upper_bound(chat.messages, chat.tools) if has_budget(entry.spec) else 0
    limits = within(state, COUNT_LIMITS, task.deadline)
    yield from account.open(
        prompt,
        completion,
        may_shrink=chat.max_tokens is None,
        count=lambda: chat_tokens(entry, backend, chat, limits),
    )


def _check_possible(state: PoolState, entry: Entry, features: Features) -> None:
    """Refuse before sending what cannot succeed there."""
    name = entry.spec.name
    if entry.key_problem is not None:
        raise StatusError(entry.key_problem, llm=name, kind="auth")
    cannot = entry.cannot(features, state.known(entry))
    if cannot:
        raise StatusError(cannot, llm=name, kind="unsupported")


def _judged(
    state: PoolState, whole: Completion, chat: ChatCall, compiled: Compiled, *, refused: bool
) -> Completion:
    """`whole` as the caller gets it, if it obeys; whether it does is remembered."""
    if chat.constraint is None or (whole.tool_calls and not whole.text):
        return whole
    now = state.clock.monotonic()
    try:
        done = judged(
            whole, chat.constraint, wrapped=compiled.wrapped, thinks=compiled.thinks, refused=refused
        )
    except ConstraintBroken as error:
        if error.kind == "constraint_broken":
            state.obedience.note(whole.llm, chat.constraint, obeyed=False, now=now)
        raise
    state.obedience.note(whole.llm, chat.constraint, obeyed=True, now=now)
    return done


def _thinking(spec: LLMSpec, chat: ChatCall) -> int | None:
    """Room for thinking besides the reply, in tokens; None = nobody said."""
    if chat.reasoning_effort == "none":
        return 0
    return spec.capabilities.thinking_tokens if chat.thinking_tokens is None else chat.thinking_tokens


def _reply_tokens(spec: LLMSpec, task: Task) -> int:
    """Most tokens of the reply itself, thinking left aside."""
    return task.chat.max_tokens or task.most or spec.capabilities.max_tokens


def _room(thinking: int, cap: int, reply: int) -> int:
    """How many of `cap` completion tokens are for thinking: where they are too few for both, half of them."""
    return min(thinking, max(cap - reply, cap // 2))


def _sizes(
    state: PoolState, place: Place, backend: Backend, task: Task, thinking: int
) -> Flow[tuple[int, int]]:
    """Likely prompt tokens, and how many completion tokens to ask for, `thinking` of them for thinking.

    The caller's word counts, within the model's cap and context. Where the context leaves less than that,
    the server is asked to count the prompt: an estimate must not cut a reply short.
    """
    candidate = place.candidate
    spec = candidate.spec
    wanted = min(_reply_tokens(spec, task) + thinking, spec.capabilities.max_tokens)
    likely = task.size.estimate(task.bytes_per_token or candidate.bytes_per_token)
    if likely + wanted > candidate.context:
        limits = within(state, COUNT_LIMITS, task.deadline)
        counted = yield from chat_tokens(place.entry, backend, task.chat, limits)
        likely = likely if counted is None else counted
    return likely, min(wanted, max(candidate.context - likely, LEAST_COMPLETION))


def limits_for(state: PoolState, spec: Spec, deadline: float | None) -> Limits:
    """Time limits of one exchange: the entry's own, and what is left of the caller's."""
    return within(state, Limits(total=spec.timeout_seconds), deadline)


def within(state: PoolState, limits: Limits, deadline: float | None) -> Limits:
    """`limits`, kept to what is left until `deadline`."""
    if deadline is None:
        return limits
    left = max(deadline - state.clock.monotonic(), 0.001)
    total = left if limits.total is None else min(limits.total, left)
    return msgspec.structs.replace(limits, total=total)
