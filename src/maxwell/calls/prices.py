"""What a host charges as published, by the library genai-prices where it is installed. Offline."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from maxwell.registry.advice import is_local
from maxwell.registry.specs import Spec


class KnownPrice(Struct, frozen=True):
    """A published price, in US dollars per 1000 tokens.

    Attributes:
        prompt: Of the prompt.
        completion: Of the completion; None = of the same price, or there is none.
        cached: Of prompt tokens from the host's cache; None = not known.
        source: Where it stands, for people.
    """

    prompt: float
    completion: float | None
    cached: float | None
    source: str


def known_price(spec: Spec) -> KnownPrice | None:
    """The published price of an entry's model at its host.

    None where that is not known, is nothing, or is more than a few figures: a price that depends on the hour
    or on the size of the prompt is not to be guessed. May take a second: the table is large.
    """
    if urlsplit(spec.api_base).scheme != "https" or is_local(spec.api_base):
        return None
    try:
        from genai_prices import Usage, __version__, calc_price
    except ImportError:
        return None
    try:
        found: Any = calc_price(Usage(), spec.model, provider_api_url=spec.api_base)
    except (LookupError, ValueError):
        return None
    # The library is content with an address that begins like the provider's.
    if not re.match(rf"(?:{found.provider.api_pattern})(?![A-Za-z0-9.-])", spec.api_base):
        return None
    if isinstance(found.model.prices, list) and any(
        hasattr(price.constraint, "start_time") for price in found.model.prices
    ):
        return None
    figures = [getattr(found.model_price, key) for key in ("input_mtok", "output_mtok", "cache_read_mtok")]
    if not any(figures) or not all(isinstance(figure, Decimal | None) for figure in figures):
        return None
    prompt, completion, cached = figures
    if prompt is None:
        return None
    source = f"genai-prices {__version__} for {found.model.id} at {found.provider.name}"
    return KnownPrice(float(prompt / 1000), _per_1k(completion), _per_1k(cached), source)


def _per_1k(per_million: Decimal | None) -> float | None:
    return None if per_million is None else float(per_million / 1000)
