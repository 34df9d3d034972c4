"""The registry's entries as values: `LLMSpec`, `EmbeddingSpec`, `RerankerSpec`, `Registry`.

Field names, defaults and ranges are the specification's. Fields it does not name are optional, so that
every specified file stays valid; they are listed in docs/registry.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from maxwell.types import BackendName, Tier

PREFILL_FACTOR = 20.0  # a prompt is read about this much faster than text is generated, unless declared

Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
Price = Annotated[float, Meta(ge=0.0)]


class Capabilities(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one LLM can do, as declared."""

    max_tokens: Annotated[int, Meta(ge=1, description="Maximum tokens in a completion.")]
    max_context: Annotated[
        int, Meta(ge=1, description="Context window of one request: prompt and completion.")
    ]
    speed_tokens_per_sec: Annotated[float, Meta(gt=0.0, description="Average generation speed.")]
    reasoning: Annotated[bool, Meta(description="Supports chain-of-thought reasoning.")] = False
    vision: Annotated[bool, Meta(description="Accepts images.")] = False
    code_specialized: Annotated[bool, Meta(description="Specialised for code.")] = False
    tools: Annotated[bool, Meta(description="Can call tools.")] = False
    slots: (
        Annotated[int, Meta(ge=1, description="Requests served at once; asked of the server when absent.")]
        | None
    ) = None
    thinking_tokens: (
        Annotated[
            int,
            Meta(ge=0, description="Room for thinking in tokens, besides the reply's; none when absent."),
        ]
        | None
    ) = None
    prefill_tokens_per_sec: (
        Annotated[
            float,
            Meta(gt=0.0, description="Speed of reading the prompt; 20 x speed_tokens_per_sec when absent."),
        ]
        | None
    ) = None


class LLMSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One declared LLM."""

    name: Annotated[Text, Meta(description="Unique identifier.")]
    api_base: Annotated[Text, Meta(description="Base URL of the OpenAI-compatible API, with or without /v1.")]
    model: Annotated[Text, Meta(description="Model name, or path of the GGUF file as the server knows it.")]
    backend: Annotated[BackendName, Meta(description="Server family.")]
    capabilities: Capabilities
    default_temperature: Annotated[float, Meta(ge=0.0, le=1.0, description="Default sampling temperature.")]
    tags: Annotated[tuple[Text, ...], Meta(description="Semantic tags for filtering.")] = ()
    cost_per_1k_tokens: Annotated[
        Price, Meta(description="US dollars per 1000 tokens, prompt and completion alike.")
    ] = 0.0
    cost_per_1k_prompt_tokens: (
        Annotated[Price, Meta(description="Overrides the single price for the prompt.")] | None
    ) = None
    cost_per_1k_completion_tokens: (
        Annotated[Price, Meta(description="Overrides the single price for the completion.")] | None
    ) = None
    cost_per_1k_cached_tokens: (
        Annotated[Price, Meta(description="Overrides the prompt's price for tokens served from cache.")]
        | None
    ) = None
    tier: Annotated[Tier, Meta(description="Service tier.")] = "standard"
    daily_budget_tokens: (
        Annotated[int, Meta(ge=0, description="Most tokens a day; null = unlimited.")] | None
    ) = None
    daily_budget_usd: (
        Annotated[float, Meta(ge=0.0, description="Most US dollars a day; null = unlimited.")] | None
    ) = None
    api_key_env: (
        Annotated[Text, Meta(description="Environment variable that holds this host's API key.")] | None
    ) = None
    timeout_seconds: Annotated[float, Meta(gt=0.0, description="Longest a call may take in all.")] | None = (
        None
    )

    @property
    def price_prompt(self) -> float:
        """US dollars per 1000 prompt tokens."""
        return (
            self.cost_per_1k_tokens
            if self.cost_per_1k_prompt_tokens is None
            else self.cost_per_1k_prompt_tokens
        )

    @property
    def price_completion(self) -> float:
        """US dollars per 1000 completion tokens."""
        own = self.cost_per_1k_completion_tokens
        return self.cost_per_1k_tokens if own is None else own

    @property
    def price_cached(self) -> float:
        """US dollars per 1000 prompt tokens that came from the server's cache."""
        return self.price_prompt if self.cost_per_1k_cached_tokens is None else self.cost_per_1k_cached_tokens

    @property
    def is_free(self) -> bool:
        """Whether every declared price is zero."""
        return not (self.price_prompt or self.price_completion or self.price_cached)


class _ReadingSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What embeddings and rerankers share: they read, and write no text."""

    name: Annotated[Text, Meta(description="Unique identifier.")]
    api_base: Annotated[Text, Meta(description="Base URL of the API, with or without /v1.")]
    model: Annotated[Text, Meta(description="Model name.")]
    tags: Annotated[tuple[Text, ...], Meta(description='Semantic tags, e.g. "default".')] = ()
    backend: Annotated[BackendName, Meta(description="Server family; found out when absent.")] | None = None
    cost_per_1k_tokens: Annotated[Price, Meta(description="US dollars per 1000 tokens.")] = 0.0
    daily_budget_tokens: (
        Annotated[int, Meta(ge=0, description="Most tokens a day; null = unlimited.")] | None
    ) = None
    daily_budget_usd: (
        Annotated[float, Meta(ge=0.0, description="Most US dollars a day; null = unlimited.")] | None
    ) = None
    api_key_env: (
        Annotated[Text, Meta(description="Environment variable that holds this host's API key.")] | None
    ) = None
    timeout_seconds: Annotated[float, Meta(gt=0.0, description="Longest a call may take in all.")] | None = (
        None
    )

    @property
    def price_prompt(self) -> float:
        """US dollars per 1000 tokens."""
        return self.cost_per_1k_tokens

    @property
    def is_free(self) -> bool:
        """Whether the declared price is zero."""
        return not self.cost_per_1k_tokens


class EmbeddingSpec(_ReadingSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One declared embedding model."""

    dimension: Annotated[int, Meta(ge=1, description="Length of a vector.")]
    max_context: Annotated[int, Meta(ge=1, description="Most tokens of one input.")]
    specialized_for: Annotated[tuple[Text, ...], Meta(description='Specialisations, e.g. "code".')] = ()


class RerankerSpec(_ReadingSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One declared reranker."""

    max_context: Annotated[int, Meta(ge=1, description="Most tokens of the query and one document.")]


Spec = LLMSpec | EmbeddingSpec | RerankerSpec


class RegistryFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A registry as it stands in the file. Keys that begin with `_` or `x-` are the user's own."""

    llms: tuple[LLMSpec, ...] = ()
    embeddings: tuple[EmbeddingSpec, ...] = ()
    rerankers: tuple[RerankerSpec, ...] = ()
    schema_version: Annotated[Literal["1.0"], Meta(description="Version of this format.")] = field(
        default="1.0", name="_schema_version"
    )
    schema_url: Annotated[str, Meta(description="JSON Schema of this file, for editors.")] | None = field(
        default=None, name="$schema"
    )
    budget_timezone: (
        Annotated[
            str,
            Meta(description="IANA time zone whose midnight starts a budget day; the machine's when absent."),
        ]
        | None
    ) = None


class Registry(Struct, frozen=True, kw_only=True):
    """A registry in use.

    Attributes:
        llms: Declared LLMs, in file order.
        embeddings: Declared embeddings, in file order.
        rerankers: Declared rerankers, in file order.
        budget_timezone: IANA name, or None for the machine's zone.
        path: The file, or None when built from values.
        project: Whether it was found inside a project directory, not named or in the home directory.
        trusted: Whether `api_key_env` may be honoured (see `registry.trust`).
        digest: SHA-256 of the file's bytes, hexadecimal.
    """

    llms: tuple[LLMSpec, ...] = ()
    embeddings: tuple[EmbeddingSpec, ...] = ()
    rerankers: tuple[RerankerSpec, ...] = ()
    budget_timezone: str | None = None
    path: Path | None = None
    project: bool = False
    trusted: bool = True
    digest: str = ""
