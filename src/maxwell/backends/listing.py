"""What a server says about itself: its health, the models it lists, llama.cpp's properties, how busy it is.

Every reader takes arbitrary bytes and never raises: a server that answers nonsense has told nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.backends.complaints import is_loading, read_complaint
from maxwell.backends.wire import BAD_JSON
from maxwell.types import HealthState, HTTPRequest, ServedModel


class Probes(Struct, frozen=True):
    """Free requests that tell how a server is. None of them generates a token.

    Attributes:
        health: Whether it is well.
        models: What it serves.
        props: How it is set up; None where the family does not tell.
        load: How many requests it has; None where the family does not tell.
        load_wakes: Whether `load` wakes a server that sleeps, and keeps awake one that would.
    """

    health: HTTPRequest
    models: HTTPRequest
    props: HTTPRequest | None = None
    load: HTTPRequest | None = None
    load_wakes: bool = False


class ModelsReply(Struct, frozen=True):
    """What /v1/models told.

    Attributes:
        state: None = it does not tell; what `/health` said stands.
        models: Models listed, in the server's order.
        family: "llamacpp", "vllm", "sglang", "openai", "ollama", or "" when not recognised.
    """

    state: HealthState | None
    models: tuple[ServedModel, ...] = ()
    family: str = ""


class Props(Struct, frozen=True):
    """llama.cpp's properties; None = not told.

    Attributes:
        slots: Requests served at once.
        context: Usable context of one request, in tokens.
        sleeping: Whether the model is out of memory until the next request.
        vision: Whether images are accepted.
        lists_slots: Whether it says what each slot does.
    """

    slots: int | None = None
    context: int | None = None
    sleeping: bool = False
    vision: bool | None = None
    lists_slots: bool = True


class _Slot(Struct):
    is_processing: bool


_slots = msgspec.json.Decoder(list[_Slot])
_REQUESTS = re.compile(rb"^vllm:num_requests_(running|waiting)(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)
_MOST_REQUESTS = 1e6  # a larger number of requests is none


def read_health(status: int, headers: Mapping[str, str], body: bytes) -> HealthState | None:
    """State by a reply to GET /health; None = this path does not tell, ask /v1/models.

    A server need not have the path (4xx, 501), and a web page in place of a reply is some other program.
    """
    if 200 <= status < 300:
        return None if _is_page(headers, body) else "up"
    if status == 429:
        return "rate_limited"
    if status < 500 or status == 501:
        return None
    return "loading" if status == 503 and is_loading(read_complaint(body)) else "down"


def read_models(status: int, headers: Mapping[str, str], body: bytes) -> ModelsReply:
    """State, models and family by a reply to GET /v1/models.

    5xx says nothing of the state: some servers cannot list their models and serve them all the same.
    """
    family = "llamacpp" if "llama.cpp" in headers.get("server", "").lower() else ""
    if status in (401, 403):
        return ModelsReply("misconfigured", family=family)
    if status == 429:
        return ModelsReply("rate_limited", family=family)
    if status == 503 and is_loading(read_complaint(body)):
        return ModelsReply("loading", family=family)
    if not 200 <= status < 300:
        return ModelsReply(None, family=family)
    try:
        decoded = msgspec.json.decode(body)
    except BAD_JSON:
        return ModelsReply(None, family=family)
    entries = decoded.get("data") if isinstance(decoded, dict) else decoded
    cards = [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []
    models = tuple(model for card in cards if (model := _served(card)) is not None)
    return ModelsReply("up", models, family or _family(card.get("owned_by") for card in cards))


def read_props(status: int, body: bytes) -> Props:
    """llama.cpp's properties by a reply to GET /props; all unknown when it is anything else."""
    if status != 200:
        return Props()
    try:
        props = msgspec.json.decode(body)
    except BAD_JSON:
        return Props()
    if not isinstance(props, dict):
        return Props()
    settings, modalities = props.get("default_generation_settings"), props.get("modalities")
    vision = modalities.get("vision") if isinstance(modalities, dict) else None
    return Props(
        slots=_positive(props.get("total_slots")),
        context=_positive(settings.get("n_ctx")) if isinstance(settings, dict) else None,
        sleeping=props.get("is_sleeping") is True,
        vision=vision if isinstance(vision, bool) else None,
        lists_slots=props.get("endpoint_slots") is not False,
    )


def read_slots(status: int, body: bytes) -> int | None:
    """Requests at work by a reply to llama.cpp's GET /slots; None when it is anything else."""
    if status != 200:
        return None
    try:
        slots = _slots.decode(body)
    except BAD_JSON:
        return None
    return sum(slot.is_processing for slot in slots) if slots else None


def read_metrics(status: int, body: bytes) -> int | None:
    """Requests running and waiting by a reply to vLLM's GET /metrics, all engines together.

    None where it does not tell.
    """
    total, running = 0.0, False
    for name, value in _REQUESTS.findall(body) if status == 200 else ():
        count = _count(value)
        if count is None:
            return None
        total += count
        running = running or name == b"running"
    return round(total) if running else None


def _count(value: bytes) -> float | None:
    try:
        count = float(value)
    except ValueError:
        return None
    return count if math.isfinite(count) and 0 <= count <= _MOST_REQUESTS else None


def find_served(model: str, served: Sequence[ServedModel]) -> ServedModel | None:
    """The listed model that a registry entry's `model` means, or None.

    An exact id or alias wins; then file names are compared without their folders and `.gguf`, and without
    regard to case where one is a Windows path; Ollama's `:latest` may be left out.
    """
    for entry in served:
        if model == entry.id or model in entry.aliases:
            return entry
    for entry in served:
        if any(_same_file(model, name) for name in (entry.id, *entry.aliases)):
            return entry
    return None


def _same_file(one: str, other: str) -> bool:
    a, b = _base_name(one), _base_name(other)
    if _is_windows(one) or _is_windows(other):
        a, b = a.lower(), b.lower()
    return a == b != ""


def _base_name(name: str) -> str:
    base = re.split(r"[/\\]", name.rstrip("/\\"))[-1].removesuffix(":latest")
    return base[:-5] if base[-5:].lower() == ".gguf" else base


def _is_windows(name: str) -> bool:
    return "\\" in name or (name[:1].isalpha() and name[1:3] == ":/")


def _served(card: dict[str, Any]) -> ServedModel | None:
    name, aliases = card.get("id"), card.get("aliases")
    if not isinstance(name, str) or not name:
        return None
    meta, status = card.get("meta"), card.get("status")
    meta = meta if isinstance(meta, dict) else {}
    # Router mode only: unloaded, loading, loaded, sleeping, downloading, downloaded.
    value = status.get("value") if isinstance(status, dict) else None
    return ServedModel(
        id=name,
        aliases=tuple(a for a in aliases if isinstance(a, str)) if isinstance(aliases, list) else (),
        context=_positive(meta.get("n_ctx")) or _positive(card.get("max_model_len")),
        dimension=_positive(meta.get("n_embd")),
        loaded=not isinstance(value, str) or value == "loaded",
    )


def _family(owners: Iterable[Any]) -> str:
    for owner in owners:
        if owner in ("llamacpp", "vllm", "sglang"):
            return str(owner)
        if owner == "library":
            return "ollama"
        if isinstance(owner, str) and owner.split("-")[0] in ("openai", "system"):
            return "openai"
    return ""


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _is_page(headers: Mapping[str, str], body: bytes) -> bool:
    return "html" in headers.get("content-type", "").lower() or body[:64].lstrip().startswith(b"<")
