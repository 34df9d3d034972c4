"""What the published schema has against a registry, in plain sentences.

`jsonschema` finds every violation; this module says each in words that name the value, what is allowed and
the likely way out. Its own wording never reaches the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from maxwell.registry.checks import Finding
from maxwell.registry.positions import Where
from maxwell.registry.schema import schema
from maxwell.registry.wording import did_you_mean, is_own_key, near, shown, shown_key

if TYPE_CHECKING:
    from jsonschema import ValidationError
    from jsonschema.protocols import Validator

_TYPES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}

# Other names for a field, from other tools' files, that no likeness of letters would find.
_ALIASES = {
    "url": "api_base",
    "base_url": "api_base",
    "endpoint": "api_base",
    "host": "api_base",
    "provider": "backend",
    "type": "backend",
    "id": "name",
    "title": "name",
    "temperature": "default_temperature",
    "context": "max_context",
    "context_length": "max_context",
    "context_window": "max_context",
    "n_ctx": "max_context",
    "ctx_size": "max_context",
    "max_model_len": "max_context",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "speed": "speed_tokens_per_sec",
    "tokens_per_second": "speed_tokens_per_sec",
    "cost": "cost_per_1k_tokens",
    "price": "cost_per_1k_tokens",
    "timeout": "timeout_seconds",
    "timezone": "budget_timezone",
    "models": "llms",
    "budget": "daily_budget_tokens",
    "parallel": "slots",
    "n_parallel": "slots",
}
_KEY_WORDS = {"api_key", "apikey", "key", "token", "authorization", "bearer", "secret", "password"}


def complaints(raw: Any) -> list[Finding]:
    """Every violation of the schema in a registry's JSON value, the user's own keys taken out."""
    said = (finding for error in _validator().iter_errors(raw) for finding in _said(error))
    return list(dict.fromkeys(said))  # each missing key of an object comes as an error of its own


@cache
def _validator() -> Validator:
    from jsonschema.validators import Draft202012Validator, extend

    # JSON Schema takes 16384.0 for a whole number; the typed decoder does not.
    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    made: Validator = extend(Draft202012Validator, type_checker=checker)(schema())  # type: ignore[no-untyped-call]
    return made


def _said(error: ValidationError) -> Iterator[Finding]:
    where: Where = tuple(error.absolute_path)
    node: dict[str, Any] = error.schema  # type: ignore[assignment]  # ours has no boolean schema that can fail
    value: Any = error.instance
    key = where[-1] if where else ""
    if error.validator == "additionalProperties":
        yield from _unknown_keys(where, node, value)
    elif error.validator == "required":
        yield from _missing(where, node, value)
    elif error.validator == "type":
        yield Finding(where, _wrong_type(value, key, node))
    elif error.validator == "minLength":
        yield Finding(where, "is empty")
    elif error.validator == "enum":
        guess = did_you_mean(value, filter(None, node["enum"])) if isinstance(value, str) else ""
        yield Finding(where, f"is {shown(value, key)}; allowed: {_allowed(node)}{guess}")
    elif error.validator != "pattern":  # the only pattern is api_base's, which `checks` words better
        yield Finding(where, f"is {shown(value, key)}; allowed: {_allowed(node)}")


def _wrong_type(value: Any, key: str | int, node: dict[str, Any]) -> str:
    types = _types(node)
    hint = ""
    if isinstance(value, str) and types & _meant(value):
        hint = "; write it without quotes"
    elif isinstance(value, float) and value.is_integer() and "integer" in types:
        hint = "; write it without the decimal point"
    elif isinstance(value, str) and "array" in types:
        hint = "; put it in square brackets"
    return f"is {shown(value, key)}; allowed: {_allowed(node)}{hint}"


def _meant(text: str) -> set[str]:
    """The types a quoted value was probably meant to have."""
    if text.lower() in ("true", "false"):
        return {"boolean"}
    return {"integer", "number"} if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) else set()


def _types(node: dict[str, Any]) -> set[str]:
    types = node.get("type", [])
    return {types} if isinstance(types, str) else set(types)


def _allowed(node: dict[str, Any]) -> str:
    """What a schema allows: `a whole number, 1 or more, or null`."""
    if "enum" in node:
        return ", ".join(shown(option) for option in node["enum"])
    if "$ref" in node:
        return "an object"
    types = _types(node)
    text = " or ".join(_TYPES[t] for t in sorted(types - {"null"}))
    low, above, high = node.get("minimum"), node.get("exclusiveMinimum"), node.get("maximum")
    if low is not None and high is not None:
        text += f" from {low:g} to {high:g}"
    elif low is not None:
        text += f", {low:g} or more"
    elif above is not None:
        text += f", more than {above:g}"
    return f"{text}, or null" if "null" in types else text


def _missing(where: Where, node: dict[str, Any], value: dict[str, Any]) -> Iterator[Finding]:
    for key in node["required"]:
        if key not in value:
            about = node["properties"][key].get("description", "").rstrip(".")
            yield Finding(where, f"lacks {shown_key(key)}" + (f" ({about})" if about else ""))


def _unknown_keys(where: Where, node: dict[str, Any], value: dict[str, Any]) -> Iterator[Finding]:
    for key in value:
        if key not in node["properties"] and not is_own_key(key):
            yield Finding(
                (*where, key), f"unknown key{_way_out(key, where, node['properties'])}", at_key=True
            )


def _way_out(key: str, where: Where, here: dict[str, Any]) -> str:
    if key.lower().replace("-", "_") in _KEY_WORDS:
        return (
            ": keys do not belong in this file; put it into an environment variable and name that one in "
            '"api_key_env"'
        )
    elsewhere = {name: place for place, names in _places().items() for name in names if name not in here}
    alias = _ALIASES.get(key.lower().replace("-", "_").replace(" ", "_"), key)
    for word in (alias, near(alias, here), near(alias, elsewhere, cutoff=0.85)):
        if word in here:
            return f"; did you mean {shown_key(word)}?"
        if word in elsewhere:
            return f"; {shown_key(word)} belongs in {elsewhere[word]}"
    names = ", ".join(name for name in here)
    return f'; allowed here: {names}, and keys of your own that begin with "_" or "x-"'


@cache
def _places() -> dict[str, list[str]]:
    """The keys of each kind of object, under the words that say where it is."""
    made = schema()
    named = made["$defs"]
    return {
        "the top level of the file": list(made["properties"]),
        'an entry of "embeddings"': list(named["EmbeddingSpec"]["properties"]),
        'an entry of "rerankers"': list(named["RerankerSpec"]["properties"]),
        'an entry of "llms"': list(named["LLMSpec"]["properties"]),
        'the entry\'s "capabilities"': list(named["Capabilities"]["properties"]),
    }
