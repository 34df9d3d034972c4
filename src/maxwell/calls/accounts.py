"""Books one attempt: the worst case is held before sending, what was used is settled after."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from functools import partial

import msgspec

from maxwell.amounts import money
from maxwell.calls.effects import Aside, Flow
from maxwell.calls.state import PoolState, has_budget, left_today, limit_of, needs_books
from maxwell.errors import BudgetExceeded
from maxwell.ledger import NANO, Amount, Hold, NoRoom, Used
from maxwell.receipts.record import Record
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.scheduler import LEAST_COMPLETION
from maxwell.types import Usage

log = logging.getLogger("maxwell")

EXACT_MARGIN = 8  # tokens that a server may add to a prompt it has counted itself
PRICE_TOLERANCE = 0.05  # a server's own price may differ by this share before it is worth a word
UNSEEN_SECONDS = 2.0  # a server may go on generating for so long before it notices that nobody listens


def cost_usd(spec: Spec, usage: Usage) -> float:
    """Price of `usage` by the registry, in US dollars; cached prompt tokens at their own price."""
    cached = min(usage.cached_tokens or 0, usage.prompt_tokens)
    if not isinstance(spec, LLMSpec):
        return spec.cost_per_1k_tokens * usage.total_tokens / 1000
    return (
        spec.price_prompt * (usage.prompt_tokens - cached)
        + spec.price_cached * cached
        + spec.price_completion * usage.completion_tokens
    ) / 1000


def worst_case(spec: Spec, prompt: int, completion: int) -> Amount:
    """Most that a call of that size can use."""
    if isinstance(spec, LLMSpec):
        price = max(spec.price_prompt, spec.price_cached)
        usd = (price * prompt + spec.price_completion * completion) / 1000
    else:
        usd = spec.cost_per_1k_tokens * prompt / 1000
    return Amount.of(prompt + completion, usd)


class Account:
    """The books of one attempt, from before it reserves until it has settled or released.

    Ends once: what is said after that changes nothing. In a forked child it does nothing, because the call is
    the parent's.

    Args:
        state: The pool's state.
        spec: Who is called.
        record: The call's receipt, which is told what is booked.

    Attributes:
        max_tokens: Completion tokens that may be asked for, once it is open.
    """

    def __init__(self, state: PoolState, spec: Spec, record: Record) -> None:
        self.max_tokens = 0
        self._record = record
        self._state = state
        self._spec = spec
        self._prompt = 0
        self._day = state.today()
        self._hold: Hold | None = None
        self._ended = False
        self._ending = threading.Lock()  # a reservation may still be under way when the caller leaves
        self._pid = os.getpid()

    def open(
        self,
        prompt: int,
        completion: int,
        *,
        may_shrink: bool = False,
        count: Callable[[], Flow[int | None]] | None = None,
    ) -> Flow[None]:
        """Reserve for at most `prompt` + `completion` tokens, if the entry has a budget.

        Where that alone is too much, the prompt is counted exactly, then the completion is cut down to what
        fits.

        Args:
            prompt: Upper bound of the prompt, in tokens.
            completion: Upper bound of the completion, in tokens.
            may_shrink: Whether the completion may be cut down.
            count: Asks the server how many tokens the prompt has; None where it cannot tell.

        Raises:
            BudgetExceeded: The budget has no room.
            LedgerError: The entry costs money or has a budget, and the books cannot be kept.
        """
        self.max_tokens = completion
        if not has_budget(self._spec):
            if needs_books(self._spec) and not self._state.ledger.is_open:
                yield Aside(self._state.ledger.ready)
            return
        self._prompt = prompt + self._state.margins.get(self._spec.name, 0)
        used = yield from self._reserve()
        if used is not None and count is not None:
            exact = yield from count()
            if exact is not None and exact + EXACT_MARGIN < prompt:
                self._prompt += exact + EXACT_MARGIN - prompt
                used = yield from self._reserve()
        while used is not None and may_shrink and (room := self._room(used)) >= LEAST_COMPLETION:
            self.max_tokens = room
            used = yield from self._reserve()
        if used is not None:
            raise self._exceeded(used)

    def send(self) -> Flow[None]:
        """Note that the request goes out now: from here on a crash is charged in full.

        Raises as `open` does: where this process was thought dead its reservation was given back, and is made
        anew.
        """
        ledger = self._state.ledger
        while (hold := self._hold) is not None and not (yield Aside(partial(ledger.send, hold))):
            used = yield from self._reserve()
            if used is not None:
                raise self._exceeded(used)

    def sure(self, usage: Usage, *, cut: bool) -> Usage:
        """`usage`; where a server did not report it and a budget has to hold, not less than it can have been.

        The prompt counts with its upper bound then, and a reply that was cut with what the server may have
        generated before it noticed; all within what was reserved.
        """
        if self._hold is None or not usage.estimated:
            return usage
        unseen = 0
        if cut and isinstance(self._spec, LLMSpec):
            unseen = math.ceil(UNSEEN_SECONDS * self._spec.capabilities.speed_tokens_per_sec)
        return msgspec.structs.replace(
            usage,
            prompt_tokens=max(usage.prompt_tokens, self._prompt),
            completion_tokens=min(usage.completion_tokens + unseen, self.max_tokens),
        )

    def settle(self, usage: Usage) -> float:
        """Book `usage`; returns its price in US dollars."""
        usd = cost_usd(self._spec, usage)
        if self._end():
            self._compare(usage, usd)
            self._record.used(usage, usd)
            amount = Amount.of(usage.total_tokens, usd)
            ledger = self._state.ledger
            if self._hold is None:
                ledger.book(self._spec.name, self._day, amount, estimated=usage.estimated)
            else:
                self._look_at_excess(self._hold, amount)
                ledger.settle(self._hold, amount, estimated=usage.estimated)
        return usd

    def release(self) -> None:
        """Nothing was used: give back what is held."""
        if self._end() and self._hold is not None:
            self._state.ledger.release(self._hold)

    def _end(self) -> bool:
        """End it; returns False when it has ended already, or is not this process's to end."""
        if os.getpid() != self._pid:
            return False
        with self._ending:
            was_open, self._ended = not self._ended, True
            return was_open

    def _reserve(self) -> Flow[Used | None]:
        """Hold the worst case; returns what is in the way, or None."""
        used: Used | None = yield Aside(self._try_to_reserve)
        return used

    def _try_to_reserve(self) -> Used | None:
        ledger, spec = self._state.ledger, self._spec
        self._day = self._state.today()
        amount = worst_case(spec, self._prompt, self.max_tokens)
        try:
            hold = ledger.reserve(spec.name, self._day, amount, limit_of(spec))
        except NoRoom as full:
            return full.used
        with self._ending:
            if not self._ended:
                self._hold = hold
                return None
        ledger.release(hold)  # the caller has left meanwhile
        return None

    def _room(self, used: Used) -> int:
        """The longest completion the budget still holds, in tokens; less than the last one tried."""
        spec = self._spec
        tokens, nanousd = left_today(spec, used)
        rooms = [self.max_tokens - 1]
        if tokens is not None:
            rooms.append(tokens - self._prompt)
        if nanousd is not None and isinstance(spec, LLMSpec) and spec.price_completion:
            left = nanousd - worst_case(spec, self._prompt, 0).nanousd
            rooms.append(math.floor(left / NANO * 1000 / spec.price_completion))
        return min(rooms)

    def _exceeded(self, used: Used) -> BudgetExceeded:
        amount = worst_case(self._spec, self._prompt, self.max_tokens)
        tokens, nanousd = left_today(self._spec, used)
        resets_at = self._state.resets_at()
        if tokens is not None and amount.tokens > tokens:
            return BudgetExceeded(
                self._spec.name, left=tokens, needed=amount.tokens, unit="tokens", resets_at=resets_at
            )
        left = (nanousd or 0) / NANO
        return BudgetExceeded(self._spec.name, left=left, needed=amount.usd, unit="usd", resets_at=resets_at)

    def _compare(self, usage: Usage, usd: float) -> None:
        """Say once where a server's own price is not the registry's."""
        reported, name = usage.reported_usd, self._spec.name
        if (
            reported is None
            or math.isclose(reported, usd, rel_tol=PRICE_TOLERANCE)
            or name in self._state.told
        ):
            return
        self._state.told.add(name)
        log.warning(
            "%s: its server says that a call cost %s where the registry's prices make it %s; correct them",
            name,
            money(reported),
            money(usd),
        )

    def _look_at_excess(self, hold: Hold, amount: Amount) -> None:
        excess = amount.tokens - hold.amount.tokens
        if excess <= 0:
            return
        # The truth is booked, and it may be more than the budget allowed; the next calls reserve more.
        margins = self._state.margins
        margins[self._spec.name] = max(margins.get(self._spec.name, 0), excess)
        log.warning(
            "%s: used %d tokens more than were reserved for the call; does its server obey max_tokens?",
            self._spec.name,
            excess,
        )
