"""Every error Maxwell raises on purpose.

    MaxwellError
    ├── RegistryError          the file: missing, unreadable, wrong; carries every problem found
    ├── NoEligibleLM           nothing may be chosen; carries the decision
    │   └── UnknownName        no entry of that name (suggests near ones)
    ├── BudgetExceeded         an entry's daily budget has no room for this call
    ├── LedgerError            the usage ledger cannot be read or written
    ├── UnknownReceipt         there is no such receipt, or it cannot be read
    ├── BadConstraint          a schema, grammar, choice list or regex that is itself wrong
    ├── ReplyCutOff            the tokens ran out before a constrained reply or a tool call was complete
    ├── ToolError              raised by a tool to tell the model what is wrong
    ├── ToolStepsExceeded      the model still asked for tools after the last step; carries the run
    ├── EmptyReply             the tokens ran out before a word of the reply came
    ├── InputTooLong           an embedding input exceeds what the model reads
    ├── DimensionMismatch      an embedding server returned vectors of another size than declared
    ├── BackendError           one server, one failed exchange; carries `kind` (see `Fault`)
    │   ├── ConnectError       no connection: refused, unreachable, DNS, TLS
    │   ├── CallTimeout        a limit ran out: connect, first byte, idle or total
    │   ├── StatusError        the server answered with an error
    │   ├── DecodeError        the server answered something that is not the protocol
    │   ├── VectorSpaceChanged an embedding makes other vectors than the registry's lock records
    │   ├── ConstraintBroken   the reply is whole but does not obey the constraint; carries the completion
    │   └── StreamBroken       the reply broke off after content had begun; carries the partial completion
    └── AllAttemptsFailed      several servers were tried; carries each attempt's error

Messages are one sentence that names the entry and what to do next. No message holds a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from maxwell.amounts import money

if TYPE_CHECKING:
    from datetime import datetime

    from maxwell.decision import Decision
    from maxwell.types import Completion, ToolRun

# What went wrong with a server, in the terms that decide what happens next.
Fault = Literal[
    "refused",  # no connection
    "timeout",  # a limit ran out before content
    "loading",  # up, but its model is not ready yet
    "overloaded",  # 503 queue full, 529
    "rate_limited",  # 429 that waiting mends
    "quota",  # 429 that waiting does not mend: no credit left
    "auth",  # 401, 403
    "model_missing",  # the server does not have that model
    "context_overflow",  # the request is longer than the model's context
    "unsupported",  # the server or model cannot do this kind of request
    "bad_request",  # the request is wrong wherever it is sent
    "content_policy",  # refused for its content
    "server_error",  # 5xx
    "bad_reply",  # not the protocol
    "constraint_broken",  # a whole reply that does not obey the call's constraint
    "broken_stream",  # cut, silent or failed after content began
]


class MaxwellError(Exception):
    """Base of every error Maxwell raises on purpose."""


class Problem:
    """One thing wrong in a registry file.

    Attributes:
        path: Where in the document, e.g. `llms[2].capabilities.max_context`; "" for the whole file.
        message: What is wrong, which value, what is allowed.
        line: 1-based line, or 0 when unknown.
        column: 1-based column, or 0 when unknown.
    """

    __slots__ = ("column", "line", "message", "path")

    def __init__(self, path: str, message: str, line: int = 0, column: int = 0) -> None:
        self.path = path
        self.message = message
        self.line = line
        self.column = column

    def __repr__(self) -> str:
        return f"Problem({self.line}:{self.column} {self.path}: {self.message})"


class RegistryError(MaxwellError):
    """The registry could not be found, read or understood.

    Attributes:
        file: Path of the file, or "" when none was found.
        problems: Every problem found, in file order.
    """

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        self.file = file
        self.problems = list(problems)
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line a problem: `file:line:column: path: message`."""
        out = []
        for p in self.problems:
            where = f"{self.file}:{p.line}:{p.column}: " if p.line else f"{self.file}: " if self.file else ""
            out.append(f"{where}{p.path}: {p.message}" if p.path else f"{where}{p.message}")
        return out


class BudgetExceeded(MaxwellError):
    """An entry's daily budget has no room for this call.

    Attributes:
        name: The entry.
        left: What is left today, in `unit`.
        needed: What the call could use at most, in `unit`; None where no call is made yet.
        unit: "tokens" or "usd".
        resets_at: When the budget starts anew.
    """

    def __init__(
        self,
        name: str,
        *,
        left: float,
        needed: float | None = None,
        unit: Literal["tokens", "usd"],
        resets_at: datetime,
    ) -> None:
        self.name = name
        self.left = left
        self.needed = needed
        self.unit = unit
        self.resets_at = resets_at
        need = "" if needed is None else f", this call may need {_amount(needed, unit)}"
        super().__init__(
            f"{name}: daily budget has {_amount(max(left, 0), unit)} left{need}; "
            f"it resets at {resets_at:%Y-%m-%d %H:%M %Z}".rstrip()
        )


def _amount(value: float, unit: Literal["tokens", "usd"]) -> str:
    return money(value) if unit == "usd" else f"{value:,.0f} tokens"


class NoEligibleLM(MaxwellError):
    """Nothing may be chosen. The message names every entry with its reason, and the nearest ways out.

    Attributes:
        decision: The `scheduler.Decision` with all rejections; None where there was nothing to decide among.
    """

    def __init__(self, message: str, decision: Decision | None = None) -> None:
        self.decision = decision
        super().__init__(message)


class UnknownName(NoEligibleLM):
    """No entry of that name. The message suggests near ones."""


class LedgerError(MaxwellError):
    """The usage ledger cannot be read or written; nothing with a budget is called until it can."""


class UnknownReceipt(MaxwellError):
    """There is no such receipt, there are several, or it cannot be read."""


class EmptyReply(MaxwellError):
    """`generate` got not one word, because the tokens ran out before the reply began.

    Attributes:
        completion: What came: reasoning, usage, cost.
    """

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        spent = "went into reasoning" if completion.reasoning else "brought no text"
        super().__init__(
            f"{completion.llm}: all {completion.usage.completion_tokens} tokens {spent}; raise max_tokens, "
            "give the thinking room of its own (thinking_tokens), or ask for less of it (reasoning_effort)"
        )


class BadConstraint(MaxwellError, ValueError):
    """A JSON schema, grammar, list of choices or regex is itself wrong; the message says where."""


class ReplyCutOff(MaxwellError):
    """A reply that must obey a constraint, or calls a tool, was cut off before it was complete.

    Attributes:
        completion: What came: text, usage, cost.
    """

    def __init__(self, completion: Completion) -> None:
        self.completion = completion
        super().__init__(
            f"{completion.llm}: the reply was cut off after {completion.usage.completion_tokens} tokens, "
            "before it was complete; raise max_tokens"
        )


class ToolError(MaxwellError):
    """Raised by a tool, not by Maxwell: its text is what the model is told, and the run goes on."""


class ToolStepsExceeded(MaxwellError):
    """The model still asked for tools after the last step that was allowed.

    Attributes:
        run: What has come of it so far.
    """

    def __init__(self, run: ToolRun, most_steps: int) -> None:
        self.run = run
        super().__init__(
            f"{run.completion.llm}: still asks for tools after {most_steps} steps; raise most_steps, "
            "or look at what the tools answered in error.run.messages"
        )


class InputTooLong(MaxwellError):
    """An embedding input is longer than the model reads. `truncate=True` cuts it instead."""


class DimensionMismatch(MaxwellError):
    """An embedding server returned vectors of another size than the registry declares."""


class BackendError(MaxwellError):
    """One exchange with one server failed.

    Attributes:
        llm: Name of the registry entry.
        kind: What went wrong (see `Fault`).
        status: HTTP status, or None when there was none.
        retry_after: Seconds the server asks to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        llm: str = "",
        kind: Fault,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.llm = llm
        self.kind: Fault = kind
        self.status = status
        self.retry_after = retry_after
        self.message = message
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.llm}: {self.message}" if self.llm else self.message


class ConnectError(BackendError):
    """No connection: refused, unreachable, name not found, TLS failed."""


class CallTimeout(BackendError):
    """A time limit ran out."""


class StatusError(BackendError):
    """The server answered with an error status or an error frame."""


class DecodeError(BackendError):
    """The server answered something that is not the protocol."""


class VectorSpaceChanged(BackendError):
    """An embedding makes other vectors than the registry's lock records for it: its model was swapped."""

    def __init__(self, name: str, detail: str) -> None:
        super().__init__(
            f"makes other vectors than the registry's lock records ({detail}), so they cannot be compared "
            "with earlier ones; serve the old model, or run `maxwell registry lock` and make the index anew",
            llm=name,
            kind="model_missing",
        )


class StreamBroken(BackendError):
    """The reply broke off after content had begun.

    Attributes:
        partial: What had arrived, with usage estimated and `finish_reason` "error".
    """

    def __init__(
        self,
        message: str,
        *,
        partial: Completion,
        llm: str = "",
        kind: Fault = "broken_stream",
        status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, llm=llm, kind=kind, status=status, retry_after=retry_after)
        self.partial = partial


class ConstraintBroken(BackendError):
    """A reply came to its end but does not obey the call's constraint.

    Attributes:
        completion: The reply, with usage and cost.
        violation: In what it does not obey, e.g. "$.age: 'x' is not of type 'integer'".
        kind: "constraint_broken", or "content_policy" where the model refused in words.
    """

    def __init__(self, violation: str, completion: Completion, *, kind: Fault = "constraint_broken") -> None:
        message = f"the reply does not obey the constraint: {violation}"
        super().__init__(message, llm=completion.llm, kind=kind)
        self.completion = completion
        self.violation = violation


class AllAttemptsFailed(MaxwellError):
    """Several servers were tried and none gave a whole reply that obeys.

    Attributes:
        attempts: Each attempt's error, in order.
    """

    def __init__(self, attempts: Sequence[BackendError]) -> None:
        self.attempts = list(attempts)
        answered = any(attempt.kind == "constraint_broken" for attempt in self.attempts)
        what = "no server gave a reply that obeys" if answered else "no server answered"
        super().__init__(f"{what}: " + "; ".join(str(a) for a in self.attempts))
