"""The published JSON Schema of a registry file, made from the Structs so that it cannot drift from them."""

from __future__ import annotations

from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
OWN_KEYS = "^(_|x-)"

_TITLES = {
    "LLMSpec": "LLM",
    "EmbeddingSpec": "Embedding",
    "RerankerSpec": "Reranker",
    "Capabilities": "Capabilities",
}


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a registry file. Every call builds a new dict."""
    import msgspec

    from maxwell.registry.specs import RegistryFile

    made = msgspec.json.schema(RegistryFile)
    definitions: dict[str, Any] = made["$defs"]
    top = _mended(definitions.pop("RegistryFile"))
    top["title"] = "Maxwell language model registry"
    top["properties"]["llms"]["description"] = "The LLMs; order breaks ties, so put local ones first."
    top["properties"]["embeddings"]["description"] = "The embedding models."
    top["properties"]["rerankers"]["description"] = "The models that score documents for a query."
    named = {name: {**_mended(body), "title": _TITLES[name]} for name, body in definitions.items()}
    for name in ("LLMSpec", "EmbeddingSpec", "RerankerSpec"):
        named[name]["properties"]["api_base"]["pattern"] = "^https?://"
    return {"$schema": DIALECT, **top, "$defs": named}


def _mended(node: Any) -> Any:
    """A copy with nullable types flattened and objects open to the user's own keys."""
    if isinstance(node, list | tuple):
        return [_mended(child) for child in node]
    if not isinstance(node, dict):
        return node
    out = {key: _mended(child) for key, child in node.items()}
    if "anyOf" in out:
        out = _nullable(out)
    if out.get("additionalProperties") is False:
        out["patternProperties"] = {OWN_KEYS: True}
    if out.get("required") == []:
        del out["required"]
    return out


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    """`anyOf [X, null]` as one schema whose type is X or null: editors and messages read it better."""
    (main,) = (option for option in node.pop("anyOf") if option != {"type": "null"})
    if "enum" in main:
        return {**main, "enum": [*main["enum"], None], **node}
    return {**main, "type": [main["type"], "null"], **node}
