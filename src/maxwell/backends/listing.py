"""What a server says about itself: its health, the models it lists, its properties, how busy it is.

Every reader takes arbitrary bytes and never raises: a server that answers nonsense has told nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
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
        models_at_root: The same where it has no /v1; to be asked when `models` gives 404.
        info: What TGI and TEI tell of themselves; to be asked when that, too, gives 404.
        props: How it is set up, or its version; None where the family does not tell.
        load: How many requests it has; None where the family does not tell.
        load_wakes: Whether `load` wakes a server that sleeps, and keeps awake one that would.
    """

    health: HTTPRequest
    models: HTTPRequest
    models_at_root: HTTPRequest | None = None
    info: HTTPRequest | None = None
    props: HTTPRequest | None = None
    load: HTTPRequest | None = None
    load_wakes: bool = False


class ModelsReply(Struct, frozen=True):
    """What /v1/models told.

    Attributes:
        state: None = it does not tell; what `/health` said stands.
        models: Models listed, in the server's order.
        family: "llamacpp", "vllm", "openai", "sglang", "ollama", "llama-cpp-python", "tgi", "tei", "infinity"
            (whose routes lie at the root; "infinity-v1" where they lie under /v1), or "" when not recognised.
    """

    state: HealthState | None
    models: tuple[ServedModel, ...] = ()
    family: str = ""


class Props(Struct, frozen=True):
    """How a server is set up; None = not told.

    Attributes:
        slots: Requests served at once.
        context: Usable context of one request, in tokens.
        sleeping: Whether the model is out of memory until the next request.
        vision: Whether images are accepted.
        lists_slots: Whether it says what each slot does.
        version: Its version, or "".
        contexts: Usable context of single models by their names, where each has its own.
    """

    slots: int | None = None
    context: int | None = None
    sleeping: bool = False
    vision: bool | None = None
    lists_slots: bool = True
    version: str = ""
    contexts: dict[str, int] = {}


class _Slot(Struct):
    is_processing: bool


_slots = msgspec.json.Decoder(list[_Slot])
_REQUESTS = re.compile(rb"^vllm:num_requests_(running|waiting)(?:\{.*\})?[ \t]+(\S+)", re.MULTILINE)
_MOST_REQUESTS = 1e6  # a larger number of requests is none
_LONGEST_WORD = 100  # a longer version is none

# Whom a server names as the owner of its models, where that tells what it is.
_OWNERS = {
    "llamacpp": "llamacpp",
    "vllm": "vllm",
    "sglang": "sglang",
    "library": "ollama",
    "me": "llama-cpp-python",
    "infinity": "infinity-v1",
}
# A model that Ollama has from another host than its own, such as hf.co/bartowski/Qwen3-GGUF:Q4_K_M. It names
# the part before the model's name as the owner.
_PULLED = re.compile(r"[\w-]+(?:\.[\w-]+)+/([^/]+)/[^/:]+:[^/:]+")


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
    return ModelsReply("up", models, family or _family(cards))


def read_models_at_root(status: int, headers: Mapping[str, str], body: bytes) -> ModelsReply:
    """The same by a reply to GET /models, of a server that has no /v1/models."""
    reply = read_models(status, headers, body)
    return msgspec.structs.replace(reply, family="infinity") if reply.family == "infinity-v1" else reply


def read_info(status: int, body: bytes) -> ModelsReply:
    """State, model and family by a reply to GET /info, where TGI and TEI tell of themselves."""
    info = _object(status, body)
    family = _family_of_info(info)
    if not family:
        return ModelsReply(None)
    name = info.get("model_id")
    context = _positive(info.get("max_input_length")) if family == "tei" else None
    models = (ServedModel(name, context=context),) if isinstance(name, str) and name else ()
    return ModelsReply("up", models, family)


def read_info_props(status: int, body: bytes) -> Props:
    """Context and version by the same reply."""
    info = _object(status, body)
    family = _family_of_info(info)
    context = info.get("max_total_tokens" if family == "tgi" else "max_input_length")
    return Props(context=_positive(context), version=_word(info.get("version"))) if family else Props()


def _family_of_info(info: dict[str, Any]) -> str:
    if "model_id" not in info:
        return ""
    if _positive(info.get("max_total_tokens")) is not None:
        return "tgi"
    return "tei" if isinstance(info.get("model_type"), dict) else ""


def read_props(status: int, body: bytes) -> Props:
    """llama.cpp's properties by a reply to GET /props; all unknown when it is anything else."""
    props = _object(status, body)
    settings, modalities = props.get("default_generation_settings"), props.get("modalities")
    vision = modalities.get("vision") if isinstance(modalities, dict) else None
    return Props(
        slots=_positive(props.get("total_slots")),
        context=_positive(settings.get("n_ctx")) if isinstance(settings, dict) else None,
        sleeping=props.get("is_sleeping") is True,
        vision=vision if isinstance(vision, bool) else None,
        lists_slots=props.get("endpoint_slots") is not False,
        version=_word(props.get("build_info")),
    )


def read_version(status: int, body: bytes) -> Props:
    """vLLM's version by a reply to GET /version."""
    return Props(version=_word(_object(status, body).get("version")))


def read_loaded(status: int, body: bytes) -> Props:
    """Contexts of the models that Ollama has loaded, by a reply to GET /api/ps.

    They may be far below what the models could read: the oldest messages beyond are dropped without a word.
    """
    models = _object(status, body).get("models")
    loaded = [m for m in models if isinstance(m, dict)] if isinstance(models, list) else []
    told = ((m.get("name"), _positive(m.get("context_length"))) for m in loaded)
    return Props(contexts={name: n for name, n in told if isinstance(name, str) and n is not None})


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


def _family(cards: Sequence[dict[str, Any]]) -> str:
    for card in cards:
        owner = card.get("owned_by")
        if not isinstance(owner, str):
            continue
        if owner in _OWNERS:
            return _OWNERS[owner]
        if owner.split("-")[0] in ("openai", "system"):
            return "openai"
        pulled = _PULLED.fullmatch(str(card.get("id")))
        if pulled is not None and pulled[1] == owner:
            return "ollama"
        if owner and owner == card.get("id") and card.get("created") == 0:
            return "tgi"
    return ""


def _object(status: int, body: bytes) -> dict[str, Any]:
    """A JSON object that came with a 200; empty when it is anything else."""
    if status != 200:
        return {}
    try:
        value = msgspec.json.decode(body)
    except BAD_JSON:
        return {}
    return value if isinstance(value, dict) else {}


def _word(value: Any) -> str:
    """A short text on one line, or ""."""
    return value if isinstance(value, str) and len(value) <= _LONGEST_WORD and value.isprintable() else ""


def _positive(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _is_page(headers: Mapping[str, str], body: bytes) -> bool:
    return "html" in headers.get("content-type", "").lower() or body[:64].lstrip().startswith(b"<")
