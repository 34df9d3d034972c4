"""Embedding calls as flows: batches in order, at one server or at several that make the same vectors.

Another entry takes over only where the registry's lock proves that it makes vectors of the same space, and
only after its server has just shown that it still does (see `spaces`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import NoReturn

from maxwell.calls.chat import FINAL
from maxwell.calls.effects import Flow, Sleep
from maxwell.calls.embed_batch import Batch, batches, embed_batch
from maxwell.calls.entries import Entry
from maxwell.calls.probe import PROBE_SECONDS, ask_all
from maxwell.calls.retries import may_ask_again
from maxwell.calls.select import embedding_problem
from maxwell.calls.spaces import Spaces
from maxwell.calls.state import PoolState
from maxwell.calls.whole import Task, insisting, item_cap
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    CallTimeout,
    DimensionMismatch,
    LedgerError,
    StatusError,
    VectorSpaceChanged,
)
from maxwell.receipts.record import Record

log = logging.getLogger("maxwell")

SHARE_OF_TIME = 0.5  # of the time left that a reply may take to begin where somebody else could answer
PROVING_PAUSE = 0.02  # seconds between two looks whether another call has proved an entry's vectors


class Vectors(list[list[float]]):
    """Vectors of a call's texts, in the texts' order; a list like any.

    Attributes:
        llms: Names of the entries that made them, in order of appearance; one, unless one took over.
        receipt: Id of the call's receipt, for `maxwell why`; "" where none is kept.
    """

    def __init__(
        self, vectors: Sequence[list[float]] = (), llms: Sequence[str] = (), receipt: str = ""
    ) -> None:
        super().__init__(vectors)
        self.llms = tuple(llms)
        self.receipt = receipt


def embed(  # noqa: PLR0913 - everything that is said about one call
    state: PoolState,
    entry: Entry,
    texts: Sequence[str],
    *,
    spaces: Spaces | None = None,
    asked: str | None = None,
    truncate: bool = False,
    seconds: float | None = None,
) -> Flow[Vectors]:
    """One vector a text, in order; the call's receipt is kept.

    Args:
        state: The pool's state.
        entry: The embedding.
        texts: What to embed; none may be empty.
        spaces: Who may take over, and what is to be proved first; None = nobody, nothing.
        asked: The name or tag it was chosen by; None = neither. Of one that was named nobody takes over.
        truncate: Cut a text that is too long to the model's limit, by the server's own tokens.
        seconds: Longest the whole call may take; None = the entry's own limit an exchange.

    Raises:
        ValueError: A text is empty.
        InputTooLong: A text is too long, and may not or cannot be cut.
        DimensionMismatch: The server's vectors have another size than declared.
        VectorSpaceChanged: The server's vectors are not the ones that the lock records.
        BudgetExceeded: The daily budget has no room.
        BackendError: The exchange failed.
        AllAttemptsFailed: Those with several servers did.
    """
    for i, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {i} to embed is empty")
    if not texts:
        return Vectors()
    deadline = None if seconds is None else state.clock.monotonic() + seconds
    spaces = spaces or Spaces(None, (), state.clock)
    others = [] if asked == entry.spec.name else spaces.others(entry)
    limit = entry.context(state.known(entry)) if truncate else None
    if limit is not None:  # a text that is cut elsewhere is another text
        others = [e for e in others if e.context(state.known(e)) >= limit]
    with state.receipts.embed(asked, texts) as record:
        course = _Course(state, spaces, [entry, *others], texts, limit, deadline)
        at: Entry | None = yield from course.first()
        while at is not None:
            try:
                with record.attempt(at.spec):
                    yield from course.serve(at, record)
                break
            except (BackendError, BudgetExceeded, LedgerError) as error:
                course.note(at, error)
                at = yield from course.follower(at, error)
        else:
            course.give_up()
    return Vectors(course.vectors, course.answered, record.id)


class _Course:
    """How far a call has come, and who may be asked next.

    Attributes:
        vectors: What has come.
        answered: Who made them.
    """

    def __init__(
        self,
        state: PoolState,
        spaces: Spaces,
        entries: Sequence[Entry],
        texts: Sequence[str],
        truncate: int | None,
        deadline: float | None,
    ) -> None:
        self._state = state
        self._spaces = spaces
        self._entries = entries  # the chosen one first
        most = min(e.backend(state.known(e)).most_inputs for e in entries)
        self._left = deque(batches(texts, most))
        self._truncate = truncate
        self._deadline = deadline
        self._failed: dict[str, list[BackendError]] = {}
        self._refused: list[BudgetExceeded | LedgerError] = []
        self._asked: list[Entry] = []
        self._caps: dict[str, int] = {}  # texts that a server takes at once, where it has said so
        self.vectors: list[list[float]] = []
        self.answered: list[str] = []

    # --- who

    def first(self) -> Flow[Entry]:
        """The chosen one, unless it is known that it cannot answer and another one can."""
        chosen = self._entries[0]
        if len(self._entries) == 1:
            return chosen
        yield from self._state.open_books(self._entries)
        if not self._is_known_bad(chosen):
            return chosen
        return (yield from self._untried(but=chosen)) or chosen

    def follower(self, entry: Entry, error: Exception) -> Flow[Entry | None]:
        """Who takes what is left; None = nobody."""
        if len(self._entries) == 1 or not self._may_go_on(error):
            return None
        follower = yield from self._untried()
        if follower is None:
            follower = next((e for e in self._entries if self._may_ask_again(e)), None)
            if follower is not None and not self._state.retries.take():
                return None
        if follower is not None:
            log.info("%s; %s takes over, its vectors are of the same space", error, follower.spec.name)
        return follower

    def _untried(self, but: Entry | None = None) -> Flow[Entry | None]:
        """The first that was not asked yet and can be used; servers of unknown state are asked for it."""
        fresh = [e for e in self._entries if e not in self._asked and e is not but]
        unknown = [e.endpoint for e in fresh if self._state.must_ask(e)]
        if unknown:
            left = PROBE_SECONDS if self._deadline is None else self._deadline - self._state.clock.monotonic()
            seconds = max(0.0, min(left, PROBE_SECONDS))
            yield from ask_all(unknown, self._state.health, self._state.clock, seconds=seconds)
        return next((e for e in fresh if self._is_usable(e)), None)

    def _is_usable(self, entry: Entry) -> bool:
        return not self._spaces.is_refused(entry) and not embedding_problem(self._state, entry)

    def _is_known_bad(self, entry: Entry) -> bool:
        return self._state.known(entry) is not None and not self._is_usable(entry)

    def _may_go_on(self, error: Exception) -> bool:
        if isinstance(error, BackendError) and error.kind in FINAL:
            return False
        return self._deadline is None or self._state.clock.monotonic() < self._deadline

    def _may_ask_again(self, entry: Entry) -> bool:
        """Whether one that failed once may have passed it."""
        failed = self._failed.get(entry.spec.name, [])
        return len(failed) == 1 and self._asked.count(entry) == 1 and may_ask_again(failed[0].kind, 1)

    def _has_other(self, entry: Entry) -> bool:
        """Whether somebody else could be asked if this one fails, as far as is known."""
        if len(self._entries) == 1:
            return False
        others = [e for e in self._entries if e is not entry]
        fresh = any(e not in self._asked and not self._is_known_bad(e) for e in others)
        return fresh or any(self._may_ask_again(e) for e in others)

    # --- what

    def serve(self, entry: Entry, record: Record) -> Flow[None]:
        """Have everything that is left embedded there."""
        others = self._has_other(entry)
        self._asked.append(entry)
        while self._left:
            task = self._task(record, others)
            yield from self._prove(entry, task, again=not others)
            batch = self._left[0]
            self.vectors += yield from self._ask(
                entry, batch, task, again=not others, truncate=self._truncate
            )
            self._left.popleft()
            if entry.spec.name not in self.answered:
                self.answered.append(entry.spec.name)

    def _task(self, record: Record, others: bool) -> Task:
        if self._deadline is None or not others:
            return Task(record, self._deadline)
        left = max(self._deadline - self._state.clock.monotonic(), 0.001)
        return Task(record, self._deadline, SHARE_OF_TIME * left)

    def _ask(
        self, entry: Entry, batch: Batch, task: Task, *, again: bool, truncate: int | None = None
    ) -> Flow[list[list[float]]]:
        """The vectors of a batch; in several requests where the server takes only so many texts at once."""
        vectors: list[list[float]] = []
        while len(vectors) < len(batch.texts):
            done, most = len(vectors), self._caps.get(entry.spec.name)
            part = Batch(batch.start + done, batch.texts[done:][:most])

            def once(part: Batch = part) -> Flow[list[list[float]]]:
                return embed_batch(self._state, entry, part, task, truncate=truncate)

            try:
                vectors += yield from insisting(self._state, entry, task, once, again=again)
            except StatusError as error:
                self._caps[entry.spec.name] = item_cap(error, len(part.texts))
            except DimensionMismatch as error:
                if self._spaces.recorded(entry) is None:
                    raise
                raise self._spaces.refuse(entry, str(error)) from error
        return vectors

    def _prove(self, entry: Entry, task: Task, *, again: bool) -> Flow[None]:
        """Raises `VectorSpaceChanged` where the entry makes other vectors than the lock records.

        One call at a time looks at them. Those that wait for it share its failure: a server that hangs would
        let them wait in a row, each for as long as the first one.
        """
        state, spaces = self._state, self._spaces
        mark, began = object(), state.clock.monotonic()
        while spaces.must_prove(entry, state.known(entry)):
            if not spaces.begin(entry, mark):
                yield from self._pause(entry, began, task)
                continue
            try:
                failure = spaces.failure(entry, began)
                if failure is not None:
                    raise failure
                yield from self._compare(entry, task, again=again)
            finally:
                spaces.end(entry)

    def _compare(self, entry: Entry, task: Task, *, again: bool) -> Flow[None]:
        """Have the canaries embedded there, and compare the vectors with the lock's."""
        try:
            canaries = Batch(0, list(self._spaces.canaries))
            made = yield from self._ask(entry, canaries, task, again=again)
            self._spaces.compare(entry, made, self._state.known(entry))
        except BackendError as error:
            # That a caller's own time was over, or that this model is another one, is found out anew.
            is_own = error.kind == "timeout" and task.deadline is not None
            if not is_own and not isinstance(error, VectorSpaceChanged):
                self._spaces.note_failure(entry, error)
            raise

    def _pause(self, entry: Entry, began: float, task: Task) -> Flow[None]:
        """Another call is at it; where somebody else could answer it is not waited for to the last moment."""
        now = self._state.clock.monotonic()
        over = task.deadline is not None and now >= task.deadline
        if over or (task.patience is not None and now - began >= task.patience):
            words = "the time ran out while its vectors were compared with the registry's lock"
            raise CallTimeout(words, llm=entry.spec.name, kind="timeout")
        yield Sleep(PROVING_PAUSE)

    # --- how it ends

    def note(self, entry: Entry, error: BackendError | BudgetExceeded | LedgerError) -> None:
        """It could not."""
        if isinstance(error, BackendError):
            self._spaces.forget(entry)
            self._failed.setdefault(entry.spec.name, []).append(error)
        else:
            self._refused.append(error)

    def give_up(self) -> NoReturn:
        """The one failure as it is; those of several entries as one error that names them all."""
        errors = [error for failed in self._failed.values() for error in failed]
        if len(self._failed) > 1:
            raise AllAttemptsFailed(errors) from errors[-1]
        raise errors[-1] if errors else self._refused[-1]
