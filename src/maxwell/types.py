"""The values that cross module borders: what a caller asks, what a server used, what came back.

Everything here is plain data. Decisions about it live in `scheduler`, its wire forms in `backends`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct, field, json
from msgspec.structs import force_setattr

BackendName = Literal["llamacpp", "vllm", "openai"]
Tier = Literal["free", "standard", "premium"]

# How much a model that reasons is to think: "none" switches it off where the model can do without.
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high"]

ConstraintKind = Literal["json_schema", "grammar", "choices", "regex"]

# One chat message in OpenAI's shape: {"role": ..., "content": ...}, passed on as it is.
Message = dict[str, Any]


class Requirements(Struct, frozen=True, kw_only=True):
    """What a caller demands of an LLM. `None` means "do not care" everywhere.

    Attributes:
        vision: True = must accept images, False = must not.
        reasoning: True = must reason, False = must not.
        code_specialized: True = must be specialised for code, False = must not.
        tools: True = must be declared able to call tools, False = must not.
        min_context: Least context window, in tokens.
        min_speed: Least generation speed, in tokens per second.
        tags: All of these must be among the entry's tags.
        tier: Exactly this tier.
        prompt: Text the request will carry; its size routes by score. Only its length is looked at.
        max_completion: Most tokens of completion that are wanted, >= 1.
        time_cost_weight: What a second of waiting is worth, in mills ($0.001), 0 to 10.
    """

    vision: bool | None = None
    reasoning: bool | None = None
    code_specialized: bool | None = None
    tools: bool | None = None
    min_context: int | None = None
    min_speed: float | None = None
    tags: tuple[str, ...] = ()
    tier: Tier | None = None
    prompt: str | None = None
    max_completion: int | None = None
    time_cost_weight: float = 1.0


class Constraint(Struct, frozen=True, eq=False):
    """What a reply's text must obey. Made by `constraints.constraint_of`, which checks it.

    Attributes:
        kind: Which of the four.
        value: "json_schema": a JSON Schema (dict), "grammar": GBNF with a rule `root` (str), "choices":
            different texts (tuple of str), of which the reply is exactly one, "regex": a regular
            expression (str) that matches the whole reply.
    """

    kind: ConstraintKind
    value: Any
    key: bytes = b""  # the value encoded, so that what is compiled once can be found again

    def __post_init__(self) -> None:
        if not self.key:
            force_setattr(self, "key", json.encode(self.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraint) and (self.kind, self.key) == (other.kind, other.key)

    def __hash__(self) -> int:
        return hash((self.kind, self.key))


class Features(Struct, frozen=True):
    """What a chat call asks of a server beyond writing text.

    Attributes:
        constraint: What the reply must obey.
        tools: Whether tools are offered.
        tool_choice: Which of them it is to call, as in `ChatCall`.
        images: Whether there are images.
        image_links: Whether some of them are given by their address, which the server must be able to fetch.
        webp: Whether some of them are WEBP pictures, which not every server can read.
        thinking: Whether the call asks for thinking before the reply.
    """

    constraint: Constraint | None = None
    tools: bool = False
    tool_choice: str | dict[str, Any] | None = None
    images: bool = False
    image_links: bool = False
    webp: bool = False
    thinking: bool = False


PLAIN = Features()


class ChatCall(Struct, frozen=True, kw_only=True):
    """One chat request, in words every backend can be spoken to with.

    Attributes:
        messages: The conversation, OpenAI's shape.
        max_tokens: Most completion tokens; always sent. None lets the call fill it in.
        temperature: Sampling temperature; None = the entry's default.
        stop: Strings that end the completion.
        seed: Sampling seed.
        tools: Tool definitions, OpenAI's shape.
        tool_choice: "none", "auto", "required" or OpenAI's object form.
        constraint: What the text must obey.
        reasoning_effort: How much to think before the reply, see `ReasoningEffort`; None = the server's way.
        thinking_tokens: Room for thinking, in tokens, besides `max_tokens`, which is the reply's; None = what
            the entry declares, else none.
        extra: Further body fields for the server, sent as they are; they win over Maxwell's own.
    """

    messages: list[Message]
    max_tokens: int | None = None
    temperature: float | None = None
    stop: list[str] | None = None
    seed: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    constraint: Constraint | None = None
    reasoning_effort: ReasoningEffort | None = None
    thinking_tokens: int | None = None
    extra: dict[str, Any] | None = None


class HTTPRequest(Struct, frozen=True):
    """One HTTP exchange to make: what a backend encodes and a transport sends. `repr` hides the headers."""

    method: Literal["GET", "POST"]
    url: str
    headers: dict[str, str]
    body: bytes = b""

    def __repr__(self) -> str:
        return f"HTTPRequest({self.method} {self.url}, {len(self.body)} bytes)"


class Usage(Struct, frozen=True):
    """Tokens one call used.

    Attributes:
        prompt_tokens: Tokens read, cached ones included.
        completion_tokens: Tokens generated, reasoning included.
        cached_tokens: Prompt tokens served from the server's cache; None = not reported.
        reasoning_tokens: Completion tokens spent on reasoning; None = not reported.
        estimated: True when the server did not report and Maxwell counted what it saw.
        reported_usd: What the server says the call cost, in US dollars; None = not reported. What is booked
            is the registry's price; where the two differ a warning says so.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False
    reported_usd: float | None = None

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Timings(Struct, frozen=True):
    """How long one call took.

    Attributes:
        total_seconds: From sending to the last byte.
        first_token_seconds: From sending to the first content; None when there was none.
        prompt_tokens_per_sec: Prefill speed as the server measured it; None = not reported.
        completion_tokens_per_sec: Generation speed as the server measured it; None = not reported.
    """

    total_seconds: float
    first_token_seconds: float | None = None
    prompt_tokens_per_sec: float | None = None
    completion_tokens_per_sec: float | None = None


class ToolCall(Struct, frozen=True):
    """One call of a tool that the model asks for. `arguments` is the model's JSON text, unparsed."""

    id: str
    name: str
    arguments: str


class Completion(Struct, frozen=True, kw_only=True):
    """What a chat call gave.

    Attributes:
        text: The reply without its reasoning.
        reasoning: Reasoning text where the server sends it apart, else "".
        tool_calls: Tools the model wants called.
        finish_reason: "stop", "length", "tool_calls", "content_filter", or a server's own word.
        usage: Tokens used.
        cost_usd: Price of that usage by the registry, in US dollars.
        timings: How long it took.
        llm: Name of the registry entry that answered.
        model: Model name as the server gave it.
        attempts: Entries tried, in order; the last one answered.
        receipt: Id of the call's receipt, for `maxwell why`; "" where none is kept.
    """

    text: str
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    finish_reason: str
    usage: Usage
    cost_usd: float
    timings: Timings
    llm: str
    model: str = ""
    attempts: list[str] = field(default_factory=list)
    receipt: str = ""

    @property
    def message(self) -> Message:
        """The reply as an assistant message, ready to be appended to the conversation."""
        message: Message = {"role": "assistant", "content": self.text}
        if self.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in self.tool_calls
            ]
        return message


class PerformedCall(Struct, frozen=True, kw_only=True):
    """One call of a tool that was performed for the model.

    Attributes:
        name: Which tool.
        arguments: The model's arguments, JSON text.
        result: What the tool returned; None where it failed.
        error: What the model was told instead of a result, or "".
    """

    name: str
    arguments: str
    result: Any = None
    error: str = ""


class ToolRun(Struct, frozen=True, kw_only=True):
    """A conversation in which the model's tool calls were performed until it had no more.

    Attributes:
        completion: The last reply.
        messages: The whole conversation, the last reply included; ready to go on with.
        calls: What was performed, in order.
        usage: Tokens of all steps together.
        cost_usd: Price of all steps together, in US dollars.
    """

    completion: Completion
    messages: list[Message]
    calls: list[PerformedCall]
    usage: Usage
    cost_usd: float

    @property
    def text(self) -> str:
        """Text of the last reply."""
        return self.completion.text


# State of one endpoint. Loading and asleep are not failures.
HealthState = Literal["unknown", "up", "loading", "asleep", "rate_limited", "misconfigured", "down"]


class ServedModel(Struct, frozen=True):
    """One model as a server lists it.

    Attributes:
        id: The server's own name for it.
        aliases: Further names it answers to.
        context: Usable context of one request, in tokens; None = not told.
        dimension: Embedding size; None = not told.
        loaded: False where the server says that it is not in memory yet.
    """

    id: str
    aliases: tuple[str, ...] = ()
    context: int | None = None
    dimension: int | None = None
    loaded: bool = True
