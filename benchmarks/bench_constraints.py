"""What a constraint costs a call: checking it, compiling it for a server, judging a reply. In us.

Judging a reply stands beside what decides the same without Maxwell: a ready jsonschema validator and a ready
pydantic model for a JSON schema, `re` for a regex, llguidance's matcher for a grammar.

Run: python benchmarks/bench_constraints.py
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import jsonschema

from maxwell.backends import get_backend
from maxwell.constraints import constraint_of, violation
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.types import Constraint
from tables import Spread, options, ratio, repeat, show

PART = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"enum": ["small", "large"]},
        "n": {"type": "integer"},
    },
    "required": ["name", "size", "n"],
    "additionalProperties": False,
}
NAMES = [f"part_{i}" for i in range(8)]
SCHEMA = {
    "type": "object",
    "properties": dict.fromkeys(NAMES, PART),
    "required": NAMES,
    "additionalProperties": False,
}
SCHEMA_REPLY = json.dumps({name: {"name": "x" * 40, "size": "small", "n": 7} for name in NAMES})
REGEX = "[A-Z]{2}-[0-9]{3}( [a-z]+){1,60}"
REGEX_REPLY = "AB-123" + " word" * 50
GRAMMAR = 'root ::= line+\nline ::= "- " word (" " word)* "\\n"\nword ::= [a-z]{1,12}\n'
GRAMMAR_REPLY = "- some words in a line\n" * 12
CASES: dict[str, tuple[dict[str, Any], str]] = {
    f"schema, {len(json.dumps(SCHEMA)):,} bytes": ({"json_schema": SCHEMA}, SCHEMA_REPLY),
    "regex": ({"regex": REGEX}, REGEX_REPLY),
    "grammar": ({"grammar": GRAMMAR}, GRAMMAR_REPLY),
    "20 choices": ({"choices": [f"choice {i}" for i in range(20)]}, "choice 7"),
}


def timed(work: Callable[[], object], calls: int) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) / calls * 1e6

    return once


def spec(backend: Any) -> LLMSpec:
    can = Capabilities(max_tokens=100, max_context=1000, speed_tokens_per_sec=10)
    return LLMSpec(
        name="a",
        api_base="http://a",
        model="gpt-4o",
        backend=backend,
        capabilities=can,
        default_temperature=0,
    )


def compiled(constraint: Constraint, backend: Any, rounds: int) -> Spread | str:
    codec, entry = get_backend(backend), spec(backend)
    try:
        codec.constrain(entry, constraint)
    except ValueError:
        return "cannot"
    return repeat(timed(lambda: codec.constrain(entry, constraint), 20), rounds)


def peers(constraint: Constraint, reply: str) -> dict[str, Callable[[], object]]:
    """Who else can judge such a reply, made ready beforehand."""
    if constraint.kind == "json_schema":
        from pydantic import create_model

        part = create_model("Part", name=(str, ...), size=(str, ...), n=(int, ...))
        model = create_model("Whole", **{name: (part, ...) for name in NAMES})  # type: ignore[call-overload]
        validator = jsonschema.Draft202012Validator(constraint.value)
        return {
            "jsonschema": lambda: validator.validate(json.loads(reply)),
            "pydantic": lambda: model.model_validate_json(reply),
        }
    if constraint.kind == "regex":
        pattern = re.compile(constraint.value)
        return {"re": lambda: pattern.fullmatch(reply)}
    if constraint.kind == "grammar":
        return {"llguidance": llguidance_matcher(constraint.value, reply)}
    return {}


def llguidance_matcher(grammar: str, reply: str) -> Callable[[], object]:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance.gbnf_to_lark import any_to_lark

    tokenizer = LLTokenizer("byte")
    lark = LLMatcher.grammar_from_lark(any_to_lark(grammar))

    def judge() -> object:
        matcher = LLMatcher(tokenizer, lark)
        assert matcher.consume_tokens(list(reply.encode()))
        assert matcher.is_accepting()
        return matcher

    return judge


def main() -> None:
    asked = options(__doc__)
    rounds = 3 if asked.quick else 15
    costs: list[list[object]] = []
    verdicts: list[list[object]] = []
    for name, (given, reply) in CASES.items():
        constraint = constraint_of(**given)
        assert constraint is not None
        check = repeat(timed(lambda given=given: constraint_of(**given), 50), rounds)  # type: ignore[misc]
        row: list[object] = [name, check]
        costs.append([*row, *(compiled(constraint, kind, rounds) for kind in ("llamacpp", "vllm", "openai"))])
        assert violation(constraint, reply) == ""
        ours = repeat(timed(lambda c=constraint, r=reply: violation(c, r), 20), rounds)  # type: ignore[misc]
        verdicts.append([name, len(reply), "Maxwell", ours, ""])
        for peer, judge in peers(constraint, reply).items():
            theirs = repeat(timed(judge, 20), rounds)
            verdicts.append([name, len(reply), peer, theirs, ratio(ours.median, theirs.median)])
    show(
        "Before a call, us; known constraints (a call finds what was compiled in about 1 us)",
        ["constraint", "check", "for llama.cpp", "for vLLM", "for OpenAI"],
        costs,
        as_json=asked.json,
    )
    show(
        "After a call: judging one reply, us",
        ["constraint", "characters", "by", "us", "Maxwell to it"],
        verdicts,
        as_json=asked.json,
    )


if __name__ == "__main__":
    main()
