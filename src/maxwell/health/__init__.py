"""The state of each endpoint: what is known of it, and the book that all of a user's processes keep of it.

A state is *fresh* for 30 seconds and *usable* until 90; after that it counts as unknown. What a real call
met outranks what a probe saw, both ways, because the call is the thing that matters: failures of calls open
the endpoint's breaker, which no probe closes.
"""

from __future__ import annotations

from maxwell.health.book import RATE_LIMIT_SECONDS, HealthBook
from maxwell.health.evidence import FRESH_SECONDS, USABLE_SECONDS, Endpoint, Health

__all__ = [
    "FRESH_SECONDS",
    "RATE_LIMIT_SECONDS",
    "USABLE_SECONDS",
    "Endpoint",
    "Health",
    "HealthBook",
]
