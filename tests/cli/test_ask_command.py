from __future__ import annotations

import base64
import json
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import one_line, unreachable

from maxwell.lm_pool import LLMPool
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
Start = Callable[..., subprocess.Popen[bytes]]
OnTerminal = Callable[..., tuple[int, str]]
PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
CANARY = "sk-canary-4f9a8b7c6d5e"


@pytest.fixture
def server(fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    """A fake server in a registry of one, named tiny."""
    server = fake_server("llamacpp", reply="Because of Rayleigh scattering.")
    write_registry(server.llm_entry("tiny"))
    return server


def asked(server: FakeServer) -> dict[str, Any]:
    """The body of the one chat request."""
    [request] = server.requests_to("/v1/chat/completions")
    body: dict[str, Any] = request.body
    return body


def test_prints_the_reply_and_nothing_else_when_piped(run: Run, server: FakeServer) -> None:
    result = run("ask", "Why is", "the sky blue?")
    assert result.stdout == "Because of Rayleigh scattering.\n"
    assert result.stderr == ""
    assert result.exit_code == 0
    assert asked(server)["messages"] == [{"role": "user", "content": "Why is the sky blue?"}]


def test_streams_each_piece_at_once(server: FakeServer, start: Start) -> None:
    server.fail(faults.Silence(after=3))
    process = start("ask", "hi")
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], 20)  # though the reply never ends
        assert ready
        assert os.read(process.stdout.fileno(), 100).startswith(b"Be")
    finally:
        process.kill()
        process.communicate()


def test_says_who_answered_where_somebody_watches(on_terminal: OnTerminal, server: FakeServer) -> None:
    code, shown = on_terminal("ask", "hi")
    assert code == 0
    text, summary = shown.split("\n", 1)
    assert text == "Because of Rayleigh scattering."
    assert "tiny · " in summary
    assert " tokens · free · " in summary


def test_says_that_usage_is_estimated(on_terminal: OnTerminal, server: FakeServer) -> None:
    server.fail(faults.NoUsage())
    assert "(estimated)" in on_terminal("ask", "hi")[1]


def test_control_characters_of_the_model_do_not_reach_the_terminal(
    on_terminal: OnTerminal, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(reply="a\x1b]0;owned\x07b").llm_entry("tiny"))
    assert "\x1b]0;" not in on_terminal("ask", "hi")[1]


def test_piped_replies_keep_every_character(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(reply="a\x1b[1mb\n").llm_entry("tiny"))
    assert run("ask", "hi").stdout == "a\x1b[1mb\n"


def test_options_reach_the_server(run: Run, server: FakeServer) -> None:
    options = ["--max-tokens", "7", "--temperature", "0.25", "--seed", "5", "--stop", "X", "--stop", "Y"]
    result = run("ask", "hi", *options, "--system", "Be brief.", "--timeout", "30")
    assert result.exit_code == 0
    body = asked(server)
    assert (body["max_tokens"], body["temperature"], body["seed"]) == (7, 0.25, 5)
    assert body["stop"] == ["X", "Y"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_json_tells_everything(run: Run, server: FakeServer) -> None:
    result = run("ask", "--json", "hi")
    told = json.loads(result.stdout)
    assert told["text"] == "Because of Rayleigh scattering."
    assert (told["llm"], told["finish_reason"], told["attempts"]) == ("tiny", "stop", ["tiny"])
    assert told["usage"]["total_tokens"] == server.usage.total_tokens
    assert told["usage"]["estimated"] is False
    assert told["cost_usd"] == 0
    assert told["timings"]["total_seconds"] > 0
    assert {"reasoning", "model"} <= set(told)


def test_reasoning_is_shown_on_request_only(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(reply="42.", reasoning="Let me think.\nDone.").llm_entry("tiny"))
    assert run("ask", "hi").stderr == ""
    result = run("ask", "--show-reasoning", "hi")
    assert (result.stdout, result.stderr) == ("42.\n", "Let me think.\nDone.\n")


def test_says_when_the_reply_was_cut_off(run: Run, server: FakeServer) -> None:
    result = run("ask", "--max-tokens", "2", "hi")
    assert result.exit_code == 0
    assert result.stderr == "maxwell: the reply was cut off after 2 tokens; --max-tokens allows more\n"


def test_says_when_the_limit_is_the_llms_own(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server(reply="One two three four five.")
    write_registry(server.llm_entry("tiny", capabilities={"max_tokens": 2}))
    for form in ((), ("--json",), ("--no-stream",)):
        assert "that is the most tiny has room for" in run("ask", *form, "hi").stderr


def test_reads_the_prompt_from_stdin(run: Run, server: FakeServer) -> None:
    assert run("ask", "-", input="from stdin\n").exit_code == 0
    assert run("ask", input="from a pipe\n").exit_code == 0
    contents = [r.body["messages"][0]["content"] for r in server.requests_to("/v1/chat/completions")]
    assert contents == ["from stdin", "from a pipe"]


def test_a_lone_dash_among_words_is_a_word(run: Run, server: FakeServer) -> None:
    run("ask", "3", "-", "2", input="not this")
    assert asked(server)["messages"][0]["content"] == "3 - 2"


def test_routes_by_score_and_requirements(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    cheap, fast = fake_server(reply="cheap"), fake_server(reply="fast")
    write_registry(
        cheap.llm_entry("cheap", capabilities={"speed_tokens_per_sec": 50}),
        fast.llm_entry(
            "fast", cost_per_1k_tokens=0.01, tags=["x"], capabilities={"speed_tokens_per_sec": 500}
        ),
    )
    assert run("ask", "-w", "0.1", "hi").stdout == "cheap\n"
    assert run("ask", "-w", "10", "hi").stdout == "fast\n"
    assert run("ask", "-w", "0.1", "--tag", "x", "hi").stdout == "fast\n"
    assert run("ask", "-w", "10", "--name", "cheap", "hi").stdout == "cheap\n"


def test_named_registry_wins(run: Run, server: FakeServer, fake_server: FakeServers, tmp_path: Path) -> None:
    other = fake_server(reply="other")
    file = tmp_path / "other.json"
    file.write_text(json.dumps({"llms": [other.llm_entry("b")], "embeddings": []}))
    assert run("ask", "--registry", str(file), "hi").stdout == "other\n"


def test_another_llm_answers_and_the_summary_says_so(
    on_terminal: OnTerminal, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    bad, good = fake_server(), fake_server(reply="good")
    bad.fail(faults.ServerError(500), times=None)
    write_registry(bad.llm_entry("bad", capabilities={"speed_tokens_per_sec": 900}), good.llm_entry("good"))
    on_terminal("list")  # both are known to be up
    code, shown = on_terminal("ask", "hi")
    assert code == 0
    assert shown.startswith("good\n")
    assert "good after bad failed" in shown


@pytest.mark.parametrize(("form", "asked"), [((), 1), (("--no-stream",), 2)])
def test_a_broken_stream_keeps_its_text_and_fails(
    run: Run, server: FakeServer, form: tuple[str, ...], asked: int
) -> None:
    server.fail(faults.Cut(after=3), times=None)
    result = run("ask", *form, "hi")
    assert len(server.requests_to("/v1/chat/completions")) == asked
    assert result.exit_code == 1
    assert "Because of Rayleigh scattering.".startswith(result.stdout.rstrip("\n"))
    assert len(result.stdout) > 3
    assert one_line(result).startswith("tiny: the reply broke off after")


@pytest.mark.parametrize("form", ["--no-stream", "--json"])
def test_a_break_that_nobody_saw_is_mended(run: Run, server: FakeServer, form: str) -> None:
    server.fail(faults.Cut(after=3))
    result = run("ask", form, "hi")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "Because of Rayleigh scattering." in result.stdout
    assert result.stdout.count("Because") == 1


def test_broken_json_prints_no_json(run: Run, server: FakeServer) -> None:
    server.fail(faults.Cut(after=3), times=None)
    result = run("ask", "--json", "hi")
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_failed_call_ends_with_1(run: Run, server: FakeServer) -> None:
    server.fail(faults.ServerError(500), times=None)
    result = run("ask", "hi")
    assert result.exit_code == 1
    assert one_line(result).startswith("tiny: ")


def test_several_failed_attempts_are_one_line(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    servers = [fake_server(), fake_server()]
    for server in servers:
        server.fail(faults.ServerError(500), times=None)
    write_registry(servers[0].llm_entry("a"), servers[1].llm_entry("b"))
    run("list")  # both are known to be up
    result = run("ask", "hi")
    assert result.exit_code == 1
    assert one_line(result).startswith("no server answered: a: ")


def test_a_spent_budget_is_not_eligible(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server().llm_entry("tiny", daily_budget_tokens=0))
    run("list")  # it is known to be up
    result = run("ask", "hi")
    assert result.exit_code == 4
    assert "tiny: daily budget has 0 tokens left; it resets in" in one_line(result)


def test_a_budget_without_room_for_this_call_ends_with_5(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server().llm_entry("tiny", daily_budget_tokens=700))
    result = run("ask", "--max-tokens", "1000", "hi")
    assert result.exit_code == 5
    assert one_line(result).startswith("tiny: daily budget has 700 tokens left")


def test_an_unreadable_ledger_stops_only_what_has_a_budget(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server()
    file = write_registry(server.llm_entry("tiny", daily_budget_tokens=10_000))
    (file.parent / "ledger.db").write_text("this is no database, it is a text of some length\n" * 50)
    result = run("ask", "hi")
    assert result.exit_code in (4, 5)
    assert "ledger" in one_line(result)


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(run: Run, server: FakeServer, prompt: str) -> None:
    for result in (run("ask", prompt), run("ask", "-", input=prompt)):
        assert result.exit_code == 2
        assert one_line(result).startswith("the prompt is empty")
    assert server.requests == []


def test_stdin_must_be_utf8(run: Run, server: FakeServer) -> None:
    result = run("ask", "-", input=b"na\xefve")
    assert result.exit_code == 2
    assert one_line(result).startswith("stdin is not UTF-8 (byte 0xef at offset 2); convert it first")


def test_an_argument_must_be_utf8(start: Start, server: FakeServer) -> None:
    process = start("ask", os.fsdecode(b"na\xefve"))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, b"")
    assert err.startswith(b"maxwell: error: the prompt is not UTF-8")


def test_a_byte_order_mark_is_no_part_of_the_prompt(run: Run, server: FakeServer) -> None:
    run("ask", "-", input=b"\xef\xbb\xbfhi")
    assert asked(server)["messages"][0]["content"] == "hi"


def test_ten_megabytes_fit_nowhere_and_say_so(run: Run, server: FakeServer) -> None:
    run("list")  # it is known to be up
    result = run("ask", "-", input="word " * 2_000_000)
    assert result.exit_code == 4
    message = one_line(result)
    assert "tiny: needs" in message
    assert "context is 4,096" in message
    assert len(message) < 500


def test_no_prompt_on_a_terminal_is_wrong_usage(on_terminal: OnTerminal, server: FakeServer) -> None:
    code, shown = on_terminal("ask")
    assert code == 2
    assert "there is no prompt; give one, or - to read it from stdin" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-w", "11"], "time_cost_weight must be a number from 0 to 10"),
        (["-w", "-1"], "time_cost_weight must be a number from 0 to 10"),
        (["-w", "nan"], "time_cost_weight must be a number from 0 to 10"),
        (["-w", "fast"], "'fast' is not a valid float"),
        (["--min-context", "0"], "min_context must be"),
        (["--max-completion", "-5"], "max_completion must be"),
        (["--min-speed", "nan"], "min_speed must be"),
        (["--tier", "gold"], "'gold' is not one of 'free', 'standard', 'premium'"),
        (["--temperature", "3"], "3.0 is not in the range"),
        (["--temperature", "nan"], "nan is not a number"),
        (["--max-tokens", "0"], "0 is not in the range"),
        (["--timeout", "0"], "0.0 is not in the range"),
        (["--timeout", "nan"], "nan is not a number"),
        (["--temprature", "x"], "No such option '--temprature'. Did you mean '--temperature'?"),
    ],
)
def test_wrong_options_end_with_2(run: Run, server: FakeServer, options: list[str], words: str) -> None:
    result = run("ask", *options, "hi")
    assert result.exit_code == 2
    assert words in one_line(result)
    assert server.requests_to("/v1/chat/completions") == []


# --- what the reply must obey

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ANN = '{"name": "Ann", "age": 41}'


@pytest.fixture
def files(isolated_home: Path) -> Path:
    """The working directory, with files that options may name."""
    here = Path.cwd()
    (here / "person.json").write_text(json.dumps(PERSON))
    (here / "answer.gbnf").write_text('root ::= "yes" | "no"')
    (here / "cat.png").write_bytes(PNG)
    return here


@pytest.fixture
def echo(fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    """A fake server that says what it is asked, in a registry of one, named tiny."""
    server = fake_server("llamacpp", reply=last_text, vision=True)
    write_registry(server.llm_entry("tiny"))
    return server


def last_text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"])


@pytest.mark.parametrize(
    ("options", "good", "bad"),
    [
        (["--json-schema", "person.json"], ANN, '{"name": "Ann"}'),
        (["--grammar", "answer.gbnf"], "yes", "maybe"),
        (["--choice", "yes", "--choice", "no"], "no", "maybe"),
        (["--regex", "[0-9]+"], "1234", "12 apples"),
    ],
)
def test_only_a_reply_that_obeys_is_printed(
    run: Run, echo: FakeServer, files: Path, options: list[str], good: str, bad: str
) -> None:
    result = run("ask", *options, good)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{good}\n", "")
    result = run("ask", *options, bad)
    assert (result.exit_code, result.stdout) == (1, "")
    assert one_line(result).startswith("tiny: the reply does not obey the constraint: ")
    result = run("ask", "--json", *options, bad)
    assert (result.exit_code, result.stdout) == (1, "")


def test_a_reply_that_is_cut_off_before_it_obeys_is_not_printed(
    run: Run, echo: FakeServer, files: Path
) -> None:
    result = run("ask", "--json-schema", "person.json", "--max-tokens", "3", ANN)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the reply was cut off after 3 tokens, before it was complete" in one_line(result)


def test_a_stream_that_breaks_off_prints_nothing_that_may_not_obey(
    run: Run, echo: FakeServer, files: Path
) -> None:
    echo.fail(faults.Cut(after=3), times=None)
    result = run("ask", "--json-schema", "person.json", ANN)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "broke off" in one_line(result)


def test_a_reply_that_does_not_obey_is_repaired_on_request(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server(reply=lambda body: "no" if len(body["messages"]) > 1 else "nope")
    write_registry(server.llm_entry("tiny"))
    options = ["--choice", "yes", "--choice", "no"]
    assert run("ask", *options, "hi").exit_code == 1
    result = run("ask", *options, "--repair", "hi")
    assert (result.exit_code, result.stdout) == (0, "no\n")
    assert server.requests_to("/v1/chat/completions")[-1].body["messages"][1]["content"] == "nope"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--json-schema", "nowhere.json"], "cannot read the JSON Schema nowhere.json: No such file"),
        (["--json-schema", "."], "cannot read the JSON Schema .: Is a directory"),
        (["--json-schema", "answer.gbnf"], "answer.gbnf is not JSON: "),
        (["--json-schema", "list.json"], "list.json is no JSON Schema, which is an object"),
        (["--json-schema", "wrong.json"], "wrong.json: json_schema, $.type: 'objec' is"),
        (["--grammar", "nowhere.gbnf"], "cannot read the grammar nowhere.gbnf: No such file"),
        (["--grammar", "person.json"], "person.json: grammar"),
        (["--grammar", "cat.png"], "cat.png is not UTF-8"),
        (["--regex", "("], "a ( without its )"),
        (["--choice", "a", "--choice", "a"], "'a' is there twice"),
        (["--choice", "a", "--regex", "b"], "obeys one thing at a time; --choice and --regex are 2"),
        (["--repair"], "--repair goes with --json-schema, --grammar, --choice or --regex"),
        (["--reasoning-effort", "huge"], "'huge' is not one of 'none', 'minimal', 'low', 'medium', 'high'"),
        (["--thinking-tokens", "-1"], "-1 is not in the range"),
        (["--image", "nowhere.png"], "cannot read the image nowhere.png: No such file"),
        (["--image", "person.json"], "person.json is no image that servers read (PNG, JPEG, GIF or WEBP)"),
        (["--image", "ftp://example.org/cat.png"], "must be http, https or data:, not ftp"),
        (["--image", "cat.png", "--no-vision"], "--image needs an LLM with vision, and --no-vision"),
    ],
)
def test_wrong_options_for_the_reply_end_with_2(
    run: Run, echo: FakeServer, files: Path, options: list[str], words: str
) -> None:
    (files / "list.json").write_text("[]")
    (files / "wrong.json").write_text('{"type": "objec"}')
    result = run("ask", *options, "hi")
    assert result.exit_code == 2
    assert words in one_line(result)
    assert one_line(result).endswith("; see `maxwell ask --help`")
    assert echo.requests == []


# --- images and thinking


def test_images_go_before_the_prompt(run: Run, echo: FakeServer, files: Path) -> None:
    result = run("ask", "--image", "cat.png", "--image", "https://example.org/dog.png", "What is this?")
    assert (result.exit_code, result.stdout) == (0, "What is this?\n")
    [message] = asked(echo)["messages"]
    cat, dog, text = message["content"]
    assert cat["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert dog["image_url"]["url"] == "https://example.org/dog.png"
    assert text == {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize("form", ["--json", "--no-stream"])
def test_images_go_along_whatever_is_printed(run: Run, echo: FakeServer, files: Path, form: str) -> None:
    assert run("ask", form, "--image", "cat.png", "hi").exit_code == 0
    assert len(asked(echo)["messages"][0]["content"]) == 2


def test_images_need_an_llm_with_vision(
    run: Run, echo: FakeServer, fake_server: FakeServers, write_registry: WriteRegistry, files: Path
) -> None:
    blind = fake_server(reply="I see nothing.")
    fast = {"speed_tokens_per_sec": 900}
    write_registry(blind.llm_entry("blind", capabilities=fast), echo.llm_entry("tiny"))
    assert run("ask", "hi").stdout == "I see nothing.\n"
    assert run("ask", "--image", "cat.png", "hi").stdout == "hi\n"
    write_registry(blind.llm_entry("blind"))
    result = run("ask", "--image", "cat.png", "hi")
    assert result.exit_code == 4
    assert "blind: vision is required" in one_line(result)


def test_a_large_image_does_not_count_by_its_bytes(run: Run, echo: FakeServer, files: Path) -> None:
    (files / "big.png").write_bytes(PNG + bytes(2_000_000))
    assert run("ask", "--image", "big.png", "hi").stdout == "hi\n"  # in a context of 4,096


def test_how_much_to_think_reaches_the_server(run: Run, echo: FakeServer) -> None:
    options = ["--reasoning-effort", "low", "--thinking-tokens", "300", "--max-tokens", "100"]
    assert run("ask", *options, "hi").exit_code == 0
    body = asked(echo)
    assert body["max_tokens"] == 400
    assert body["reasoning_effort"] == "low"


def test_no_room_for_thinking_is_not_the_same_as_nothing_said(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server()
    write_registry(server.llm_entry("tiny", capabilities={"thinking_tokens": 200}))
    run("ask", "--max-tokens", "50", "hi")
    run("ask", "--max-tokens", "50", "--thinking-tokens", "0", "hi")
    assert [r.body["max_tokens"] for r in server.requests_to("/v1/chat/completions")] == [250, 50]


# --- who may be asked


def test_an_unknown_name_suggests_near_ones(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server().llm_entry("qwen-coder-30b"))
    result = run("ask", "--name", "qwen-codr-30b", "hi")
    assert result.exit_code == 4
    assert one_line(result) == "no LLM 'qwen-codr-30b'; did you mean qwen-coder-30b?"


def test_a_registry_without_llms_says_so(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(embeddings=True).embedding_entry("e"))
    result = run("ask", "hi")
    assert result.exit_code == 4
    assert one_line(result) == "no LLM can be chosen: the registry declares none"


def test_all_down_says_so_for_each(run: Run, write_registry: WriteRegistry) -> None:
    write_registry(unreachable("a"), unreachable("b"))
    result = run("ask", "hi")
    assert result.exit_code == 4
    message = one_line(result)
    assert message.startswith("no LLM can be chosen: a: ")
    assert "; b: " in message


def test_nothing_fits_the_requirements(run: Run, server: FakeServer) -> None:
    result = run("ask", "--vision", "--tag", "coding", "hi")
    assert result.exit_code == 4
    assert "tiny: vision is required" in one_line(result)


def test_a_key_shows_up_nowhere(
    run: Run,
    fake_server: FakeServers,
    write_registry: WriteRegistry,
    monkeypatch: pytest.MonkeyPatch,
    maxwell_home: Path,
) -> None:
    monkeypatch.setenv("CANARY_API_KEY", CANARY)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)
    server = fake_server("openai", api_key="another key")
    body = {"error": {"message": f"Incorrect API key provided: {CANARY}", "code": "invalid_api_key"}}
    server.fail(faults.Status(401, body), times=None)
    server.fail(faults.Status(200, {"data": [{"id": "tiny"}]}), times=None, path="/v1/models")
    write_registry(server.llm_entry("paid", api_key_env="CANARY_API_KEY"))
    shown = ""
    for command in (["ask", "hi"], ["ask", "--json", "hi"], ["list"], ["check"], ["explain", "hi"]):
        for form in ([], ["--json"]):
            result = run(*command, *form)
            shown += result.output
            shown += run(*command, *form, env={"MAXWELL_DEBUG": "0"}).output
    assert any(CANARY in r.headers.get("authorization", "") for r in server.requests)  # it was sent
    assert CANARY not in shown
    written = [p for p in maxwell_home.rglob("*") if p.is_file() and CANARY.encode() in p.read_bytes()]
    assert written == []


def test_ctrl_c_stops_the_server_and_ends_with_130(server: FakeServer, start: Start) -> None:
    server.fail(faults.SlowTokens(0.2))
    process = start("ask", "hi")
    assert process.stdout is not None
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == b""
    assert b"scattering" not in out
    assert server.wait_aborted().path == "/v1/chat/completions"


def test_ctrl_c_before_the_first_word(server: FakeServer, start: Start) -> None:
    server.fail(faults.SlowFirstByte(math.inf))
    process = start("ask", "hi")
    # /health, /v1/models, /props, then the chat that never answers
    while not server.requests_to("/v1/chat/completions"):
        server.wait_requests(len(server.requests) + 1, timeout=30)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.strip()) == (130, b"", b"")
    assert server.wait_aborted().path == "/v1/chat/completions"


def test_a_reader_that_goes_away_stops_the_server(
    fake_server: FakeServers, write_registry: WriteRegistry, start: Start
) -> None:
    server = fake_server(reply="many words and lines\n" * 200, tokens_per_sec=500)
    write_registry(server.llm_entry("tiny", daily_budget_tokens=100_000))
    process = start("ask", "hi")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"many words and lines\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stdin.close()
    process.stderr.close()
    assert server.wait_aborted().path == "/v1/chat/completions"
    with LLMPool.from_registry() as pool:
        used = pool.usage()["tiny"]
    assert used.held_tokens == 0  # settled, not left hanging
    assert used.tokens > 0


def test_streaming_loads_nothing_that_draws(server: FakeServer) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'rich', 'aiohttp', 'asyncio', 'jsonschema'}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules))))\n"
        "from maxwell.cli import main\n"
        "sys.argv = ['maxwell', 'ask', 'hi']\n"
        "main()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    assert out == b"Because of Rayleigh scattering.\n[]\n"
