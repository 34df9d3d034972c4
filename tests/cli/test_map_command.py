from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import one_line, unreachable, unstyled

from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]
Start = Callable[..., subprocess.Popen[bytes]]
PNG = b"\x89PNG\r\n\x1a\n"


def echo(body: dict[str, Any]) -> str:
    """The last message's text, in capitals."""
    content = body["messages"][-1]["content"]
    return str(content if isinstance(content, str) else content[-1]["text"]).upper()


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply=echo, slots=4)


@pytest.fixture
def registry(server: FakeServer, fake_server: FakeServers, write_registry: WriteRegistry) -> Path:
    other = fake_server("vllm", reply=echo)
    return write_registry(
        server.llm_entry("one", tags=["coding"]), other.llm_entry("two"), unreachable("gone")
    )


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"prompt {n}\n" for n in range(12)))
    return file


def records(text: str | Path) -> list[dict[str, Any]]:
    """The output's objects, by index."""
    whole = text.read_text() if isinstance(text, Path) else text
    return sorted((json.loads(line) for line in whole.splitlines()), key=lambda record: record["index"])


def asked(server: FakeServer) -> list[str]:
    """The prompts that arrived."""
    return [r.body["messages"][-1]["content"] for r in server.requests_to("/v1/chat/completions")]


# --- what is printed


def test_every_prompt_has_an_object(run: Run, registry: Path, prompts: Path) -> None:
    result = run("map", str(prompts))
    assert result.exit_code == 0
    found = records(result.stdout)
    assert [r["index"] for r in found] == list(range(12))
    assert [r["text"] for r in found] == [f"PROMPT {n}" for n in range(12)]
    assert {r["llm"] for r in found} <= {"one", "two"}
    assert {(r["finish_reason"], r["cost_usd"]) for r in found} == {("stop", 0.0)}
    assert all(r["usage"]["total_tokens"] > 0 for r in found)
    first, last = result.stderr.splitlines()
    assert first == "asking 12 prompts"
    assert last.startswith("12 answered, ")
    assert sum(int(part.split()[-1]) for part in last.split(", ") if part[:4] in ("one ", "two ")) == 12


def test_bare_replies_come_in_order(run: Run, registry: Path, prompts: Path, server: FakeServer) -> None:
    server.fail(faults.SlowFirstByte(0.3), path="/v1/chat")
    result = run("map", str(prompts), "--text")
    assert result.stdout.splitlines() == [f"PROMPT {n}" for n in range(12)]


def test_stdin_is_a_file_like_any_other(run: Run, registry: Path) -> None:
    assert run("map", "-", "--text", input="a\r\nb\n").stdout == "A\nB\n"
    assert run("map", "-", "--text", input="a\u2028b").stdout == "A\u2028B\n"


def test_requirements_and_options_count(run: Run, registry: Path, prompts: Path, server: FakeServer) -> None:
    result = run("map", str(prompts), "--tag", "coding", "--system", "Be brief.", "--max-tokens", "1")
    assert {r["llm"] for r in records(result.stdout)} == {"one"}
    assert {r["finish_reason"] for r in records(result.stdout)} == {"length"}
    body = server.requests_to("/v1/chat/completions")[0].body
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}


def test_json_lines_have_options_and_ids_of_their_own(run: Run, registry: Path, tmp_path: Path) -> None:
    file = tmp_path / "requests.jsonl"
    lines = [
        {"prompt": "one", "id": "first"},
        {"messages": [{"role": "user", "content": "two"}], "id": 7},
        {"prompt": "three is longer", "max_tokens": 1},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    found = records(run("map", str(file)).stdout)
    assert [r.get("id") for r in found] == ["first", 7, None]
    assert [r["text"] for r in found[:2]] == ["ONE", "TWO"]
    assert found[2]["finish_reason"] == "length"
    plain = tmp_path / "requests"
    plain.write_text(file.read_text())
    assert records(run("map", str(plain), "--jsonl").stdout)[0]["text"] == "ONE"


# --- what the replies must obey, images, thinking


def test_a_reply_that_does_not_obey_is_no_answer(
    run: Run, write_registry: WriteRegistry, server: FakeServer
) -> None:
    write_registry(server.llm_entry("one"))
    result = run("map", "-", "--choice", "YES", "--choice", "NO", input="yes\nmaybe\nno\n")
    assert result.exit_code == 1
    first, second, third = records(result.stdout)
    assert (first["text"], third["text"]) == ("YES", "NO")
    assert "text" not in second
    assert second["kind"] == "constraint_broken"
    assert "the reply does not obey the constraint: " in second["error"]


def test_lines_have_constraints_of_their_own(
    run: Run, write_registry: WriteRegistry, fake_server: FakeServers
) -> None:
    server = fake_server(
        reply=lambda body: body["messages"][0]["content"] if len(body["messages"]) < 2 else "7"
    )
    write_registry(server.llm_entry("one"))
    lines = [
        {"prompt": "12", "regex": "[0-9]+"},
        {"prompt": "twelve", "regex": "[0-9]+"},
        {"prompt": "seven", "regex": "[0-9]+", "repair": True},
        {"prompt": '{"a": 1}', "json_schema": {"type": "object", "required": ["a"]}},
        {"prompt": "yes", "grammar": 'root ::= "yes"'},
        {"prompt": "anything"},
    ]
    found = records(run("map", "-", "--jsonl", input="\n".join(map(json.dumps, lines))).stdout)
    assert [r.get("text") for r in found] == ["12", None, "7", '{"a": 1}', "yes", "anything"]


def test_how_much_to_think_is_of_the_line_or_of_all(
    run: Run, write_registry: WriteRegistry, server: FakeServer
) -> None:
    write_registry(server.llm_entry("one"))
    lines = [{"prompt": "a"}, {"prompt": "b", "thinking_tokens": 0, "reasoning_effort": "none"}]
    options = ["--max-tokens", "50", "--thinking-tokens", "30", "--reasoning-effort", "high"]
    assert run("map", "-", "--jsonl", *options, input="\n".join(map(json.dumps, lines))).exit_code == 0
    bodies = {r.body["messages"][0]["content"]: r.body for r in server.requests_to("/v1/chat/completions")}
    assert (bodies["a"]["max_tokens"], bodies["a"]["reasoning_effort"]) == (80, "high")
    assert bodies["b"]["max_tokens"] == 50


@pytest.fixture
def seeing(fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    """A server with vision, beside one without."""
    server = fake_server(reply=echo, vision=True)
    write_registry(fake_server(reply="blind").llm_entry("blind"), server.llm_entry("seeing"))
    return server


def pictures(server: FakeServer) -> dict[str, list[bytes]]:
    """What each prompt was shown."""
    shown = {}
    for request in server.requests_to("/v1/chat/completions"):
        *images, text = request.body["messages"][-1]["content"]
        urls = [image["image_url"]["url"] for image in images]
        shown[text["text"]] = [base64.b64decode(url.partition(",")[2]) for url in urls]
    return shown


def test_images_of_a_line_are_found_beside_the_file(run: Run, seeing: FakeServer, tmp_path: Path) -> None:
    there = tmp_path / "data" / "pictures"
    there.mkdir(parents=True)
    (there / "cat.png").write_bytes(PNG + b"cat")
    (tmp_path / "dog.png").write_bytes(PNG + b"dog")
    file = there.parent / "requests.jsonl"
    lines = [
        {"prompt": "one", "images": ["pictures/cat.png", str(tmp_path / "dog.png")]},
        {"prompt": "two", "images": ["data:image/png;base64," + base64.b64encode(PNG).decode()]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    result = run("map", str(file))
    assert result.exit_code == 0
    assert {r["llm"] for r in records(result.stdout)} == {"seeing"}
    assert pictures(seeing) == {"one": [PNG + b"cat", PNG + b"dog"], "two": [PNG]}


def test_images_of_all_go_with_each_prompt_that_has_none(run: Run, seeing: FakeServer) -> None:
    Path("cat.png").write_bytes(PNG + b"cat")
    Path("dog.png").write_bytes(PNG + b"dog")
    lines = [{"prompt": "one"}, {"prompt": "two", "images": ["dog.png"]}]
    result = run("map", "-", "--jsonl", "--image", "cat.png", input="\n".join(map(json.dumps, lines)))
    assert result.exit_code == 0
    assert pictures(seeing) == {"one": [PNG + b"cat"], "two": [PNG + b"dog"]}
    conversation = '{"messages": [{"role": "user", "content": "a"}]}'
    refused = run("map", "-", "--jsonl", "--image", "cat.png", input=conversation)
    assert refused.exit_code == 2
    assert "images go with prompts; messages hold their own" in one_line(refused)


def test_a_directory_may_be_moved_between_two_runs_but_not_change(
    run: Run, seeing: FakeServer, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    (before / "cat.png").write_bytes(PNG)
    (before / "requests.jsonl").write_text('{"prompt": "one", "images": ["cat.png"]}')
    out = tmp_path / "out.jsonl"
    assert run("map", str(before / "requests.jsonl"), "--out", str(out)).exit_code == 0
    before.rename(after)
    again = ["map", str(after / "requests.jsonl"), "--out", str(out)]
    assert "had been answered before" in run(*again).stderr
    (after / "cat.png").write_bytes(PNG + b"another")
    assert "is about another prompt or other options" in one_line(run(*again))


def test_other_images_or_constraints_for_all_are_other_options_but_repair_is_not(
    run: Run, seeing: FakeServer, tmp_path: Path
) -> None:
    Path("cat.png").write_bytes(PNG + b"cat")
    command = ["map", "-", "--out", str(tmp_path / "out.jsonl"), "--image", "cat.png", "--regex", "[A-Z]+"]
    assert run(*command, input="one\n").exit_code == 0
    for other in ([], ["--repair"]):
        assert "had been answered before" in run(*command, *other, input="one\n").stderr
    assert run(*command[:-1], "[A-Z]*", input="one\n").exit_code == 2
    Path("cat.png").write_bytes(PNG + b"dog")
    assert run(*command, input="one\n").exit_code == 2


def test_images_without_anybody_who_sees_are_one_error(
    run: Run, write_registry: WriteRegistry, fake_server: FakeServers
) -> None:
    write_registry(fake_server().llm_entry("blind"))
    Path("cat.png").write_bytes(PNG)
    result = run("map", "-", "--image", "cat.png", input="one\ntwo\n")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "blind: vision is required" in one_line(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--image", "nowhere.png"], "cannot read the image nowhere.png"),
        (["--grammar", "nowhere.gbnf"], "cannot read the grammar nowhere.gbnf"),
        (["--choice", "a", "--regex", "b"], "one thing at a time"),
    ],
)
def test_wrong_options_end_with_2(
    run: Run, registry: Path, prompts: Path, server: FakeServer, options: list[str], words: str
) -> None:
    result = run("map", str(prompts), *options)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert asked(server) == []


# --- what fails


def test_failures_are_told_and_end_with_one(
    run: Run, write_registry: WriteRegistry, server: FakeServer
) -> None:
    write_registry(server.llm_entry("one"))
    server.fail(faults.Status(400), times=1, path="/v1/chat")
    result = run("map", "-", input="a\nb\nc\n")
    assert result.exit_code == 1
    found = records(result.stdout)
    [failed] = [r for r in found if "error" in r]
    assert "HTTP 400" in failed["error"]
    assert failed["kind"] == "bad_request"
    assert "text" not in failed
    told = result.stderr.splitlines()
    assert told[1].startswith(f"maxwell: prompt {failed['index'] + 1}: one: HTTP 400")
    assert told[-1].startswith("2 answered, 1 failed, ")


def test_only_the_first_failures_are_told(
    run: Run, write_registry: WriteRegistry, server: FakeServer
) -> None:
    write_registry(server.llm_entry("one"))
    server.fail(faults.Status(400), times=None, path="/v1/chat")
    told = run("map", "-", input="a\nb\nc\nd\ne\n").stderr.splitlines()
    assert [line.startswith("maxwell: prompt ") for line in told] == [False, True, True, True, False, False]
    assert told[4] == "maxwell: and 2 more"


def test_nobody_to_ask_is_one_error(run: Run, registry: Path, prompts: Path, server: FakeServer) -> None:
    result = run("map", str(prompts), "--tag", "nowhere")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "lacks tag nowhere" in one_line(result)
    assert asked(server) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no prompt"),
        ("a\n\nb\n", "line 2 of - is empty"),
        (b"\xff\n", "is not UTF-8"),
    ],
)
def test_bad_prompts_are_refused(run: Run, registry: Path, content: Any, words: str) -> None:
    result = run("map", "-", input=content)
    assert result.exit_code == 2
    assert words in one_line(result)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "line 2 of - is not JSON"),
        ("[]", 'must be an object with either "prompt" or "messages"'),
        ("{}", 'must be an object with either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', 'must be an object with either "prompt" or "messages"'),
        ('{"prompt": "a", "max_token": 3}', "did you mean max_tokens"),
        ('{"prompt": "a", "temperature": 9}', "temperature must be from 0 to 2"),
        ('{"prompt": "a", "id": 1.5}', '"id" must be a text or a whole number'),
        ('{"messages": [{"role": "user", "content": "a"}]}', "--system goes with prompts"),
        ('{"prompt": "a", "regex": "("}', "a ( without its )"),
        ('{"prompt": "a", "regex": "b", "choices": ["c", "d"]}', "choices and regex are given"),
        ('{"prompt": "a", "json_schema": {"type": "objec"}}', "'objec' is not"),
        ('{"prompt": "a", "repair": 1}', "repair must be True or False"),
        ('{"prompt": "a", "reasoning_effort": "huge"}', "reasoning_effort must be none, minimal"),
        ('{"prompt": "a", "thinking_tokens": -1}', "thinking_tokens must be 0 or more"),
        ('{"prompt": "a", "images": "cat.png"}', "images must be a list of paths and addresses"),
        ('{"prompt": "a", "images": [7]}', "images must be a list of paths and addresses"),
        ('{"prompt": "a", "images": [""]}', "the path of the image is empty"),
        ('{"prompt": "a", "images": ["nowhere.png"]}', "cannot read the image nowhere.png: No such file"),
        ('{"prompt": "a", "images": ["page.pdf"]}', "page.pdf is a PDF document"),
        ('{"prompt": "a", "images": ["ftp://example.org"]}', "must be http, https or data:, not ftp"),
    ],
)
def test_bad_lines_are_refused_before_anything_is_asked(
    run: Run, registry: Path, server: FakeServer, line: str, words: str
) -> None:
    Path("page.pdf").write_bytes(b"%PDF-1.7")
    result = run("map", "-", "--jsonl", "--system", "x", input=f'{{"prompt": "a"}}\n{line}\n')
    assert result.exit_code == 2
    assert words in one_line(result)
    assert "line 2 of -" in one_line(result)
    assert asked(server) == []


def test_wrong_usage(run: Run, registry: Path, prompts: Path, tmp_path: Path) -> None:
    assert "cannot read nowhere" in one_line(run("map", "nowhere"))
    result = run("map", str(prompts), "--text", "--out", str(tmp_path / "out"))
    assert result.exit_code == 2
    assert "cannot be resumed" in one_line(result)


# --- going on


def test_what_is_answered_is_not_asked_again(
    run: Run, write_registry: WriteRegistry, server: FakeServer, prompts: Path, tmp_path: Path
) -> None:
    write_registry(server.llm_entry("one"))
    out = tmp_path / "out.jsonl"
    server.fail(faults.Status(400), times=3, path="/v1/chat")
    first = run("map", str(prompts), "--out", str(out))
    assert (first.exit_code, first.stdout) == (1, "")
    assert first.stderr.splitlines()[-1] == "maxwell: the same command asks the rest"
    failed = [r["index"] for r in records(out) if "error" in r]
    assert len(failed) == 3
    before = len(asked(server))
    second = run("map", str(prompts), "--out", str(out))
    assert second.exit_code == 0
    assert "3 answered (9 before)" in second.stderr
    assert sorted(asked(server)[before:]) == sorted(f"prompt {n}" for n in failed)
    assert [(r["index"], r["text"]) for r in records(out)] == [(n, f"PROMPT {n}") for n in range(12)]
    third = run("map", str(prompts), "--out", str(out))
    assert third.exit_code == 0
    assert third.stderr.splitlines() == ["all 12 prompts had been answered before"]


@pytest.mark.parametrize("tail", ['{"index":11,"te', '{"in', '{"index":11}'])
def test_a_broken_last_line_is_repaired(
    run: Run, registry: Path, prompts: Path, tmp_path: Path, tail: str
) -> None:
    out = tmp_path / "out.jsonl"
    run("map", str(prompts), "--out", str(out))
    lines = [line for line in out.read_text().splitlines() if '"index":11,' not in line]
    out.write_text("\n".join([*lines, tail]))
    result = run("map", str(prompts), "--out", str(out))
    assert "1 answered (11 before)" in result.stderr
    assert [r["index"] for r in records(out)] == list(range(12))


def test_a_last_line_without_its_end_is_whole(
    run: Run, registry: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    run("map", str(prompts), "--out", str(out))
    whole = out.read_text()
    out.write_text(whole.removesuffix("\n"))
    assert "all 12 prompts" in run("map", str(prompts), "--out", str(out)).stderr
    assert out.read_text() == whole


def test_another_input_is_refused(run: Run, registry: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run("map", str(prompts), "--out", str(out))
    before = out.read_text()
    for args, content in (
        ((), prompts.read_text().replace("prompt 3", "another")),
        ((), "prompt 0\nprompt 1\n"),
        (("--max-tokens", "5"), prompts.read_text()),
        (("--system", "x"), prompts.read_text()),
    ):
        result = run("map", "-", "--out", str(out), *args, input=content)
        assert result.exit_code == 2
        assert "is about another prompt or other options" in one_line(result)
    assert out.read_text() == before
    grown = run("map", "-", "--out", str(out), input=prompts.read_text() + "prompt 12\n")
    assert "1 answered (12 before)" in grown.stderr


@pytest.mark.parametrize("content", ["my notes", "my notes\n", "{}\n", '{"index": 0}\n', "\n"])
def test_another_file_is_never_overwritten(
    run: Run, registry: Path, prompts: Path, tmp_path: Path, content: str
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(content)
    result = run("map", str(prompts), "--out", str(out))
    assert result.exit_code == 2
    assert "was not written by `maxwell map`" in one_line(result)
    assert out.read_text() == content


def test_printed_objects_can_be_gone_on_with(run: Run, registry: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text(run("map", str(prompts)).stdout)
    assert "all 12 prompts" in run("map", str(prompts), "--out", str(out)).stderr


@pytest.mark.skipif(os.name == "nt", reason="no file locks there")
def test_two_at_once_do_not_write_into_one_file(
    run: Run, start: Start, registry: Path, server: FakeServer, prompts: Path, tmp_path: Path
) -> None:
    server.fail(faults.SlowFirstByte(30.0), times=None, path="/v1/chat")
    out = tmp_path / "out.jsonl"
    process = start("map", str(prompts), "--out", str(out), "--tag", "coding")
    try:
        server.wait_requests(3, timeout=30)
        result = run("map", str(prompts), "--out", str(out))
        assert result.exit_code == 1
        assert "another process is writing" in one_line(result)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_stopped(
    run: Run,
    start: Start,
    write_registry: WriteRegistry,
    fake_server: FakeServers,
    tmp_path: Path,
    ending: Any,
) -> None:
    server = fake_server(reply=echo, slots=2, tokens_per_sec=100)
    write_registry(server.llm_entry("one"))
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.jsonl"
    prompts.write_text("".join(f"prompt {n} is one of many\n" for n in range(40)))
    process = start("map", str(prompts), "--out", str(out))
    server.wait_requests(12, timeout=30)
    process.send_signal(ending)
    _, err = process.communicate(timeout=30)
    before = len(records(out)) if ending == signal.SIGINT else None
    if before is not None:
        assert process.returncode == 130
        assert b" not asked" in err
        assert 0 < before < 40
    result = run("map", str(prompts), "--out", str(out))
    assert result.exit_code == 0
    found = records(out)
    assert [r["index"] for r in found] == list(range(40))
    assert all(r["text"] == f"PROMPT {r['index']} IS ONE OF MANY" for r in found)
    if before is not None:
        assert f"{40 - before} answered ({before} before)" in result.stderr


# --- on a terminal


def test_a_terminal_shows_a_bar(
    on_terminal: OnTerminal, registry: Path, prompts: Path, tmp_path: Path
) -> None:
    code, shown = on_terminal("map", str(prompts), "--out", str(tmp_path / "out.jsonl"), columns=100)
    assert code == 0
    assert "/12" in unstyled(shown)
    assert "12 answered · " in unstyled(shown)


def test_answers_on_a_terminal_are_not_mixed_with_a_bar(
    on_terminal: OnTerminal, registry: Path, prompts: Path
) -> None:
    shown = unstyled(on_terminal("map", str(prompts), "--text", columns=100)[1])
    assert shown.splitlines()[:12] == [f"PROMPT {n}" for n in range(12)]
    assert "/12" not in shown
