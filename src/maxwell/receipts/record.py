"""The receipt of a call that runs: a handful of references, put into words by the thread that writes it."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from maxwell.decision import Decision
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    ConstraintBroken,
    LedgerError,
    MaxwellError,
    ReplyCutOff,
    StreamBroken,
)
from maxwell.receipts import Attempted, Choice, Prices, Receipt, sum_of
from maxwell.receipts.text import Said, sizes, transcript, without_quotes
from maxwell.registry.specs import Spec
from maxwell.types import Completion, Usage

if TYPE_CHECKING:
    from types import TracebackType

    from maxwell.receipts.book import ReceiptBook

log = logging.getLogger("maxwell")

MOST_MESSAGE = 1_000  # characters of an error

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: none that looks like another
_ID_LENGTH = 8


class Record:
    """The receipt of a call that runs. Enter it with `with`: whatever way the call ends is then kept, once.

    Attributes:
        id: The receipt's id; "" where none is kept.
        at: When the call began, in seconds since the epoch.
    """

    __slots__ = (
        "_asked",
        "_attempts",
        "_began",
        "_book",
        "_chosen_before",
        "_decision",
        "_finish_reason",
        "_first",
        "_held",
        "_kind",
        "_message",
        "_outcome",
        "_pid",
        "_prompt",
        "_reply",
        "_running",
        "_said",
        "_seconds",
        "_sizes",
        "_took_over",
        "at",
        "id",
    )

    def __init__(
        self,
        book: ReceiptBook,
        kind: Literal["chat", "embed", "rerank"],
        said: Said,
        *,
        decision: Decision | None = None,
        asked: str | None = None,
    ) -> None:
        self.id = _new_id() if book.keeps else ""
        self.at = book.clock.time()
        self._book = book
        self._kind = kind
        self._said = said
        self._decision = decision
        self._asked = asked
        self._pid = os.getpid()
        self._began = book.clock.monotonic()
        self._seconds = 0.0
        self._attempts: list[RecordedAttempt] = []
        self._running: RecordedAttempt | None = None
        self._chosen_before = ""
        self._took_over: Decision | None = None
        self._held = 0.0
        self._outcome = ""
        self._message = ""
        self._sizes = (0, 0, 0)
        self._finish_reason = ""
        self._first: float | None = None
        self._prompt: str | None = None
        self._reply: str | None = None

    def decided(self, decision: Decision) -> None:
        """It was decided anew who is asked next; of several decisions before one attempt the last counts.

        Before the first attempt this is the decision that the receipt shows; later it tells who took over.
        """
        if self._decision is not None and self._decision.by == "name":
            decision = msgspec.structs.replace(decision, by="name")  # so it was, however often it is decided
        if self._attempts:
            self._took_over = decision
            return
        before = self._decision.chosen if self._decision is not None else None
        if before is not None and not self._chosen_before:
            self._chosen_before = before.spec.name
        self._decision = decision

    def held(self, seconds: float) -> None:
        """The present attempt, or else the next one, was held back for so long; adds up."""
        running = self._running
        if running is not None and running.runs:
            running.held(seconds)
        else:
            self._held += seconds

    def attempt(self, spec: Spec) -> RecordedAttempt:
        """An entry is asked, while the `with` block of what this returns lasts."""
        self._running = attempt = RecordedAttempt(self, spec, self._held, self._took_over)
        self._held, self._took_over = 0.0, None
        return attempt

    def used(self, usage: Usage, usd: float) -> None:
        """So much is booked for the present attempt; several bookings are added up."""
        if self._running is not None:
            self._running.used(usage, usd)

    def answered(self, done: Completion) -> None:
        """The reply, whole or as far as it came."""
        self._finish_reason = done.finish_reason
        self._first = done.timings.first_token_seconds
        if self._book.log_content:
            self._reply = self._book.fit_to_keep(done.text)

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self.id or os.getpid() != self._pid:  # in a forked child the call is the parent's
            return
        book = self._book
        self._seconds = book.clock.monotonic() - self._began
        self._outcome = _outcome(error)
        if error is not None and not self._attempts:
            self._message = self.words_of(error)
        if isinstance(error, StreamBroken):
            self.answered(error.partial)
        elif isinstance(error, ConstraintBroken | ReplyCutOff):
            self.answered(error.completion)
        self._sizes = sizes(self._said)
        if book.log_content:
            self._prompt = book.fit_to_keep(transcript(self._said))
        self._said = ()  # it may be large, and what is kept may have to wait
        book.keep(self)

    def words_of(self, error: BaseException) -> str:
        """What an error says, as far as it may be kept."""
        if not isinstance(error, MaxwellError):  # a bug's message may hold anything
            return type(error).__name__ if isinstance(error, Exception) else ""
        if isinstance(error, ConstraintBroken) and not self._book.log_content:
            # In what would quote it.
            if error.kind == "content_policy":
                return "the model refused, or a content filter ended the reply"
            return "the reply does not obey the constraint"
        message = (error.message if isinstance(error, BackendError) else str(error))[:MOST_MESSAGE]
        return message if self._book.log_content else without_quotes(message, self._said)

    def row(self) -> tuple[str, float, bytes] | None:
        """What is written: id, time and body; None when it cannot be put into words."""
        try:
            return self.id, self.at, msgspec.json.encode(self._receipt())
        except Exception:  # whatever is peculiar about one call must not keep the others from being booked
            log.warning("the receipt %s could not be kept", self.id, exc_info=True)
            return None

    def _receipt(self) -> Receipt:
        """Without `id` and `at`, which stand beside it."""
        attempts = tuple([attempt.kept() for attempt in self._attempts])
        messages, characters, images = self._sizes
        answered = attempts and self._outcome in ("ok", "broken_stream")
        return Receipt(
            kind=self._kind,
            outcome=self._outcome,
            llm=attempts[-1].name if answered else "",
            choice=self._choice(attempts),
            chosen_before=self._replaced(attempts),
            message=self._message,
            attempts=attempts,
            held_seconds=round(self._held, 6),
            messages=messages,
            characters=characters,
            images=images,
            seconds=round(self._seconds, 6),
            first_token_seconds=None if self._first is None else round(self._first, 6),
            finish_reason=self._finish_reason,
            prompt=self._prompt,
            reply=self._reply,
        )

    def _replaced(self, attempts: Sequence[Attempted]) -> str:
        """Who had been chosen before, where in the end another one was asked."""
        return self._chosen_before if attempts and attempts[0].name != self._chosen_before else ""

    def _choice(self, attempts: Sequence[Attempted]) -> Choice:
        if self._decision is not None:
            return self._book.rendered(self._decision)
        if self._asked is None:
            return Choice(by="default")
        named = any(attempt.name == self._asked for attempt in attempts)
        return Choice(by="name" if named else "tag", asked=self._asked)


class RecordedAttempt:
    """One entry that is asked by a call that runs; its `with` block is the attempt."""

    __slots__ = (
        "_began",
        "_decision",
        "_held",
        "_idle",
        "_message",
        "_outcome",
        "_record",
        "_seconds",
        "_spec",
        "_usage",
        "_usd",
    )

    def __init__(self, record: Record, spec: Spec, held: float, decision: Decision | None) -> None:
        self._record = record
        self._spec = spec
        self._held = held  # seconds, before it began and since
        self._idle = 0.0  # seconds of them since it began
        self._decision = decision
        self._began = record._book.clock.monotonic()
        self._seconds = 0.0
        self._outcome = ""
        self._message = ""
        self._usage: Usage | None = None
        self._usd = 0.0

    @property
    def runs(self) -> bool:
        """Whether it is not over yet."""
        return not self._outcome

    def held(self, seconds: float) -> None:
        """See `Record.held`."""
        self._held += seconds
        self._idle += seconds

    def used(self, usage: Usage, usd: float) -> None:
        """See `Record.used`."""
        self._usage = sum_of(self._usage, usage)
        self._usd += usd

    def __enter__(self) -> None:
        self._record._attempts.append(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        record = self._record
        self._seconds = record._book.clock.monotonic() - self._began
        self._outcome = _outcome(error)
        if error is not None:
            self._message = record.words_of(error)

    def kept(self) -> Attempted:
        """The attempt as a receipt has it."""
        return Attempted(
            name=self._spec.name,
            outcome=self._outcome,
            message=self._message,
            choice=None if self._decision is None else Choice.of_takeover(self._decision),
            held_seconds=round(self._held, 6),
            seconds=round(max(self._seconds - self._idle, 0.0), 6),
            usage=self._usage,
            usd=round(self._usd, 12),
            prices=Prices.of(self._spec),
        )


def _outcome(error: BaseException | None) -> str:
    """How something ended, in a word."""
    if error is None:
        return "ok"
    if isinstance(error, BackendError):
        return error.kind
    if isinstance(error, BudgetExceeded):
        return "budget"
    if isinstance(error, LedgerError):
        return "ledger"
    if isinstance(error, ReplyCutOff):
        return "cut_off"
    if isinstance(error, AllAttemptsFailed) and any(a.kind == "constraint_broken" for a in error.attempts):
        return "constraint_broken"  # somebody answered
    return "failed" if isinstance(error, Exception) else "cancelled"


# Its own, because a program that seeds the shared one would overwrite its own receipts at every run.
_random = random.Random()  # noqa: S311 - an id need not be secret
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


def _new_id() -> str:
    bits = _random.getrandbits(5 * _ID_LENGTH)
    return "".join([_ALPHABET[bits >> shift & 31] for shift in range(0, 5 * _ID_LENGTH, 5)])
