"""Books one attempt: the worst case is held before sending, what was used is settled after."""

from __future__ import annotations

import logging

from maxwell.calls.state import Entry, PoolState, budget_left, has_budget
from maxwell.errors import BudgetExceeded, LedgerError
from maxwell.ledger import Hold, NoRoom, resets_at
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.types import Usage

log = logging.getLogger("maxwell")

LEAST_COMPLETION = 64  # a shrunken completion below this is of no use to anybody


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


def worst_usd(spec: Spec, prompt: int, completion: int) -> float:
    """Most a call of that size can cost, in US dollars."""
    if isinstance(spec, LLMSpec):
        return (
            max(spec.price_prompt, spec.price_cached) * prompt + spec.price_completion * completion
        ) / 1000
    return spec.cost_per_1k_tokens * prompt / 1000


class Account:
    """The books of one attempt. Settle or release it exactly once; a second time changes nothing."""

    def __init__(
        self, state: PoolState, spec: Spec, hold: Hold | None, held_tokens: int, max_tokens: int
    ) -> None:
        self.max_tokens = max_tokens
        self._state = state
        self._spec = spec
        self._hold = hold
        self._held_tokens = held_tokens
        self._day = state.today()
        self._closed = False

    @classmethod
    def open(
        cls, state: PoolState, entry: Entry, prompt: int, max_tokens: int, *, may_shrink: bool
    ) -> Account:
        """Reserve for a call of at most `prompt` + `max_tokens` tokens, if the entry has a budget.

        Args:
            state: The pool's state.
            entry: Who is to be called.
            prompt: Upper bound of the prompt, in tokens.
            max_tokens: Upper bound of the completion, in tokens.
            may_shrink: Whether a completion that does not fit the budget may be cut down to what does.

        Raises:
            BudgetExceeded: The budget has no room.
            LedgerError: The books cannot be kept.
        """
        spec = entry.spec
        if not has_budget(spec):
            return cls(state, spec, None, 0, max_tokens)
        day = state.today()
        while True:
            usd = worst_usd(spec, prompt, max_tokens)
            try:
                hold = state.ledger.reserve(
                    spec.name,
                    day,
                    prompt + max_tokens,
                    usd,
                    most_tokens=spec.daily_budget_tokens,
                    most_usd=spec.daily_budget_usd,
                )
                return cls(state, spec, hold, prompt + max_tokens, max_tokens)
            except NoRoom as full:
                left = budget_left(spec, full.used)
                # One token fewer each time round at least: a sum of dollars may be off by its last digit.
                room = min(_room(spec, left, prompt), max_tokens - 1)
                if not may_shrink or room < LEAST_COMPLETION:
                    raise _exceeded(state, spec, left, prompt + max_tokens, usd) from None
                max_tokens = room

    def settle(self, usage: Usage) -> float:
        """Book `usage`; returns its price in US dollars."""
        usd = cost_usd(self._spec, usage)
        if self._closed:
            return usd
        self._closed = True
        try:
            if self._hold is not None:
                self._look_at_excess(usage)
                self._state.ledger.settle(self._hold, usage.total_tokens, usd)
            else:
                self._state.ledger.book(self._spec.name, self._day, usage.total_tokens, usd)
        except LedgerError as error:
            # The reply is there and must not be lost; a hold stays, so the budget is not passed.
            log.warning("%s: %d tokens could not be booked: %s", self._spec.name, usage.total_tokens, error)
        return usd

    def _look_at_excess(self, usage: Usage) -> None:
        excess = usage.total_tokens - self._held_tokens
        if excess > 0:  # the truth is booked, and it may be more than the budget allowed
            log.warning(
                "%s: used %d tokens more than were reserved for the call; does its server obey max_tokens?",
                self._spec.name,
                excess,
            )

    def release(self) -> None:
        """Nothing was used: give the hold back."""
        if self._closed:
            return
        self._closed = True
        if self._hold is not None:
            try:
                self._state.ledger.release(self._hold)
            except LedgerError as error:
                log.warning("%s: a reservation could not be given back: %s", self._spec.name, error)


def _room(spec: Spec, left: tuple[int | None, float | None], prompt: int) -> int:
    """The longest completion the budget still holds, in tokens."""
    tokens, usd = left
    rooms = []
    if tokens is not None:
        rooms.append(tokens - prompt)
    if usd is not None and isinstance(spec, LLMSpec) and spec.price_completion:
        rooms.append(int((usd - worst_usd(spec, prompt, 0)) * 1000 / spec.price_completion))
    return min(rooms, default=0)


def _exceeded(
    state: PoolState, spec: Spec, left: tuple[int | None, float | None], tokens: int, usd: float
) -> BudgetExceeded:
    now = state.clock.time()
    reset = resets_at(now, state.zone)
    if left[0] is not None and tokens > left[0]:
        return BudgetExceeded(spec.name, left=left[0], needed=tokens, unit="tokens", resets_at=reset)
    return BudgetExceeded(spec.name, left=left[1] or 0.0, needed=usd, unit="usd", resets_at=reset)
