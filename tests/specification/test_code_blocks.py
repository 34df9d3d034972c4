"""Every code block of the specification runs; one without a test fails `test_no_block_is_left_out`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from worlds import World

from maxwell.decision import Candidate, Request
from maxwell.registry.load import decode
from maxwell.scheduler import decide
from maxwell.testing.fixtures import WriteRegistry
from maxwell.types import Requirements

BLOCK = re.compile(r"^#{2,4} (?P<heading>[^\n]+)$|^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S)


def blocks(text: str) -> list[tuple[str, str, str]]:
    """(heading, language, body) of every fenced block."""
    found, heading = [], ""
    for match in BLOCK.finditer(text):
        if match["kind"]:
            found.append((heading, match["kind"], match["body"]))
        else:
            heading = match["heading"]
    return found


SPECIFICATION = (Path(__file__).parents[2] / "docs" / "specification.md").read_text(encoding="utf-8")
BLOCKS = blocks(SPECIFICATION)
PYTHON = {
    heading: body for heading, kind, body in BLOCKS if kind == "python" and heading != "Scheduling Algorithm"
}
JSON = {heading: body for heading, kind, body in BLOCKS if kind == "json"}

TESTED = {
    "Schema",
    "LLM Configuration",
    "llama.cpp",
    "vLLM",
    "OpenAI",
    "Embedding Configuration",
    "Get Default LLM (Fastest)",
    "Get Specific LLM by Name",
    "Intelligent Routing (Prompt-Based)",
    "Select by Capabilities",
    "Get Embedding",
    "Budget Tracking",
    "Scheduling Algorithm",
    "Example Registry",
}


def test_no_block_is_left_out() -> None:
    fenced = [heading for heading, _, _ in BLOCKS]
    assert set(fenced) == TESTED
    assert len(fenced) == len(set(fenced))


def example_llm(**fields: Any) -> dict[str, Any]:
    """The specification's LLM entry with other fields."""
    entry: dict[str, Any] = json.loads(JSON["LLM Configuration"])
    return {**entry, **fields}


def load_one(entry: dict[str, Any], kind: str = "llms") -> Any:
    registry = decode(json.dumps({kind: [entry]}).encode(), "lm_registry.json")
    return getattr(registry, kind)[0]


def test_schema_block_names_the_top_level_keys() -> None:
    text = JSON["Schema"].replace("[...]", "[" + json.dumps(example_llm()) + "]", 1).replace("[...]", "[]")
    registry = decode(text.encode(), "lm_registry.json")
    assert registry.llms[0].name == "qwen-coder-30b"
    assert registry.schema_version == "1.0"


def test_llm_configuration_block() -> None:
    spec = load_one(example_llm())
    assert spec.model == "C:\\dev\\Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf"
    assert spec.capabilities.max_context == 32768
    assert spec.daily_budget_tokens is None


@pytest.mark.parametrize("heading", ["llama.cpp", "vLLM", "OpenAI"])
def test_backend_blocks(heading: str) -> None:
    given = json.loads(JSON[heading])
    spec = load_one(example_llm(**given))
    assert {key: getattr(spec, key) for key in given} == given


def test_budget_block() -> None:
    spec = load_one(example_llm(**json.loads(JSON["Budget Tracking"])))
    assert (spec.name, spec.daily_budget_tokens, spec.cost_per_1k_tokens) == ("gpt-4o", 100000, 0.005)


def test_embedding_configuration_block() -> None:
    spec = load_one(json.loads(JSON["Embedding Configuration"]), "embeddings")
    assert (spec.dimension, spec.max_context, spec.specialized_for) == (2560, 4096, ("code", "natural"))


def test_example_registry_block_is_the_example_file() -> None:
    registry = decode(JSON["Example Registry"].encode(), "lm_registry.json")
    assert [llm.name for llm in registry.llms] == ["qwen-coder-30b", "qwen-vl-4b"]
    assert [e.name for e in registry.embeddings] == ["qwen-embed-4b"]
    file = Path(__file__).parents[1] / "data" / "spec_registry.json"
    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(JSON["Example Registry"])


@pytest.fixture
def example_registry(world: World, write_registry: WriteRegistry) -> World:
    """The example's entries, served here, and one that makes every capability example answerable."""
    write_registry(
        world.llm("qwen-coder-30b", speed=25, reasoning=True, tags=["reasoning", "high-context", "coding"]),
        world.llm("qwen-vl-4b", speed=150, vision=True, max_context=4096, tags=["vision", "small", "fast"]),
        world.llm("fast-coder", speed=120, max_context=8192, tags=["coding"]),
        world.embedding("qwen-embed-4b", tags=["default", "general-purpose"]),
    )
    return world


@pytest.mark.parametrize("heading", sorted(PYTHON))
def test_python_block_runs(heading: str, example_registry: World) -> None:
    names: dict[str, Any] = {"long_document": "A sentence of a long document. " * 200}
    if "import" not in PYTHON[heading]:
        exec("from maxwell.lm_pool import get_lm", names)
    exec(PYTHON[heading], names)
    if "response" in names:
        assert names["response"]
        assert isinstance(names["response"], str)
    expected = {
        "Get Default LLM (Fastest)": "qwen-vl-4b",
        "Get Specific LLM by Name": "qwen-coder-30b",
        "Select by Capabilities": "fast-coder",  # the block's last line: coding, at least 100 tokens a second
    }
    if heading in expected:
        assert names["lm"].spec.name == expected[heading]
    if heading == "Get Embedding":
        assert len(names["vector"]) == names["embed"].spec.dimension
        assert all(isinstance(x, float) for x in names["vector"])


def test_scheduling_block_is_the_score() -> None:
    spec = load_one(example_llm(cost_per_1k_tokens=0.002))
    request = Request(needs=Requirements(time_cost_weight=2.0, max_completion=100), prompt_bytes=4000)
    found = decide([Candidate(spec=spec)], request).ranked[0]
    names: dict[str, Any] = {
        "monetary_cost": 0.002 * 1100,  # mills: 1000 x dollars
        "time_cost_weight": 2.0,
        "time_seconds": 1000 / (20 * 25) + 100 / 25,
        "utilization_bonus": 1 - abs(1100 / 32768 - 0.7),
    }
    block = next(body for heading, _, body in BLOCKS if heading == "Scheduling Algorithm")
    exec(block, names)
    assert found.score == names["score"]
