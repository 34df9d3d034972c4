"""`maxwell demo` as a newcomer runs it: a process with an empty home of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import maxwell

pytestmark = pytest.mark.real

SOURCE = Path(maxwell.__file__).resolve().parents[1]
STEPS = (
    "The registry",
    "The default",
    "By name",
    "By prompt",
    "By capability",
    "A reply that must obey",
    "An embedding",
    "Explain",
    "The chosen server is killed",
    "The books",
)


class Demo:
    """`maxwell demo` as the leader of a session, so that whatever it leaves running is found by its session.

    Attributes:
        home: Its home directory, empty at first.
        temporary: Its directory for temporary files, empty at first.
    """

    def __init__(self, directory: Path, *arguments: str, warnings: str = "error") -> None:
        self.home, self.temporary = directory / "home", directory / "tmp"
        self.home.mkdir(parents=True)
        self.temporary.mkdir()
        unwanted = ("MAXWELL_HOME", "MAXWELL_REGISTRY", "MAXWELL_DEBUG")
        environment = {name: value for name, value in os.environ.items() if name not in unwanted}
        environment |= {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(SOURCE),
            "PYTHONWARNINGS": warnings,
            "http_proxy": "http://127.0.0.1:9",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "maxwell", "demo", *arguments],
            cwd=self.home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def read_until(self, words: str) -> str:
        """What it prints up to the line with `words`."""
        assert self.process.stdout is not None
        said = ""
        for line in self.process.stdout:
            said += line
            if words in line:
                return said
        pytest.fail(f"it never said {words!r}: {said}")

    def end(self) -> tuple[int, str, str]:
        """Exit code, the rest of stdout and stderr."""
        said, errors = self.process.communicate(timeout=60)
        return self.process.returncode, said, errors

    def running(self) -> list[int]:
        """Processes of its session."""
        listed = subprocess.run(["ps", "-axo", "pid="], capture_output=True, text=True, check=True).stdout
        return [int(pid) for pid in listed.split() if session_of(int(pid)) == self.process.pid]

    def left_running(self) -> list[int]:
        """Those that do not end soon: a server ends by itself once it sees that its parent is gone."""
        deadline = time.monotonic() + 10.0
        while self.running() and time.monotonic() < deadline:
            time.sleep(0.05)
        return self.running()

    def leftovers(self) -> list[Path]:
        """Files it left in its home and among the temporary ones."""
        return [*self.home.rglob("*"), *self.temporary.rglob("*")]

    def close(self) -> None:
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return 0


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    with ExitStack() as started:

        def start(*arguments: str) -> Demo:
            # An interrupt may fall right between Python's opening of a file and our holding it.
            demo = Demo(tmp_path, *arguments, warnings="error,ignore::ResourceWarning")
            started.callback(demo.close)
            return demo

        yield start


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Demo, str]]:
    """A demo that ran to its end, and all it said."""
    demo = Demo(tmp_path_factory.mktemp("demo"))
    try:
        code, said, errors = demo.end()
        assert (code, errors) == (0, "")
        yield demo, said
    finally:
        demo.close()


def step(said: str, title: str) -> str:
    """What was said under one heading."""
    found = re.search(rf"^\d+\. {title}.*?(?=^\d+\. |^Done:)", said, re.MULTILINE | re.DOTALL)
    assert found is not None, said
    return found[0]


def names_chosen(text: str) -> list[str]:
    return re.findall(r"^   (\S+) is (?:chosen|the one)", text, re.MULTILINE)


# --- what it shows ---


def test_every_step_is_there_in_order(whole: tuple[Demo, str]) -> None:
    headings = re.findall(r"^(\d+)\. (.+)$", whole[1], re.MULTILINE)
    assert [int(number) for number, _ in headings] == list(range(1, len(STEPS) + 1))
    for (_, heading), start in zip(headings, STEPS, strict=True):
        assert heading.startswith(start)


def test_noise_is_called_noise_at_the_top_and_at_every_reply(whole: tuple[Demo, str]) -> None:
    before, after = whole[1].split("\n1. ")
    assert "NOISE" in before
    assert "weights random" in before
    replies = re.findall(
        r" answered: 40 tokens in [\d.]+ s for \$[\d.]+\.\n(?:   done.attempts.*\n)?   (\w+): ", after
    )
    assert replies == ["noise"] * 5


def test_default_is_the_fastest_and_the_dead_one_is_skipped_with_its_reason(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "The default")
    assert names_chosen(text) == ["paid-fast"]
    assert re.search(r"Skipped switched-off: cannot connect to .*\(Connection refused\)", text)


def test_named_one_answers(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "By name")
    assert names_chosen(text) == ["free-slow"]
    assert "free-slow answered" in text


def test_weights_choose_differently_and_a_long_document_goes_where_it_fits(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "By prompt")
    assert names_chosen(text) == ["paid-fast", "free-medium", "free-slow"]
    assert re.search(r"time_cost_weight=10\)\n   paid-fast is .*faster.*mills dearer", text)
    assert re.search(r"Its score: [\d.]+ bonus - [\d.]+ mills - 10 x [\d.]+ s = -?[\d.]+\n", text)
    assert "Skipped free-medium: needs " in text


def test_capabilities_choose_and_the_impossible_is_explained(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "By capability")
    assert names_chosen(text) == ["free-slow", "free-medium"]
    assert "NoEligibleLM: no LLM can be chosen: " in text
    assert "start switched-off at http://127.0.0.1:" in text


def test_constraints_are_obeyed(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "A reply that must obey")
    by_schema, by_choice = re.findall(r"^   (\S+) obeyed: (.+)$", text, re.MULTILINE)
    assert by_schema[0] == "paid-fast"
    reply = json.loads(by_schema[1])
    assert set(reply) == {"mood", "sure"}
    assert reply["mood"] in ("calm", "cross")
    assert isinstance(reply["sure"], bool)
    assert by_choice[0] == "free-slow"
    assert by_choice[1] in ("yes", "no")


def test_embedding_has_its_dimension(whole: tuple[Demo, str]) -> None:
    assert "embedder gave 64 numbers: " in step(whole[1], "An embedding")


def test_explain_ranks_all_three_and_rejects_the_dead_one(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "Explain")
    ranked = re.findall(r"^ +\d+  (\S+) ", text, re.MULTILINE)
    assert sorted(ranked) == ["free-medium", "free-slow", "paid-fast"]
    assert re.search(r"^switched-off +cannot connect", text, re.MULTILINE)
    assert "The choice flips to paid-fast above weight " in text


def test_killed_server_breaks_the_stream_and_the_next_call_goes_elsewhere(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "The chosen server is killed")
    victim, successor = names_chosen(text)
    assert re.search(rf"StreamBroken: {victim}: the reply broke off after [1-9]\d* characters", text)
    assert re.search(r'error.partial holds .*\n   noise: "..', text)
    assert f"{successor} answered: 40 tokens" in text
    assert f"done.attempts: {victim}, {successor}\n" in text
    assert re.search(rf"Skipped {victim}: cannot connect", text)


def test_books_hold_every_entry_and_the_price(whole: tuple[Demo, str]) -> None:
    text = step(whole[1], "The books")
    booked = dict(re.findall(r"^(\S+) +(\d+)  +\$", text, re.MULTILINE))
    assert set(booked) == {"paid-fast", "free-medium", "free-slow", "embedder"}
    assert re.search(r"^paid-fast .*\$0\.0\d+$", text, re.MULTILINE)
    for_programs = json.loads(text.partition("for other programs: ")[2])
    assert {name: sum(days.values()) for name, days in for_programs.items()} == {
        name: int(tokens) for name, tokens in booked.items()
    }


def test_piped_output_is_plain(whole: tuple[Demo, str]) -> None:
    assert "\x1b" not in whole[1]
    assert whole[1].isprintable() or set(re.findall(r"[^ -~]", whole[1])) <= {"\n"}


# --- what it leaves ---


def test_nothing_is_left(whole: tuple[Demo, str]) -> None:
    assert whole[0].left_running() == []
    assert whole[0].leftovers() == []


@pytest.mark.parametrize("moment", ["Starting a llama.cpp server", "4. By prompt"])
def test_ctrl_c_leaves_nothing(moment: str, start_demo: Callable[..., Demo]) -> None:
    demo = start_demo()
    demo.read_until(moment)
    demo.process.send_signal(signal.SIGINT)
    code, _, errors = demo.end()
    assert code == 130
    assert "interrupted: the demo's servers are stopped" in errors
    assert "Traceback" not in errors
    assert demo.left_running() == []
    assert demo.leftovers() == []


def test_termination_leaves_nothing(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo()
    demo.read_until("2. The default")
    demo.process.terminate()
    code, _, errors = demo.end()
    assert (code, errors) == (143, "")
    assert demo.left_running() == []
    assert demo.leftovers() == []


def test_reader_that_goes_away_ends_it(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo()
    demo.read_until("1. The registry")
    assert demo.process.stdout is not None
    demo.process.stdout.close()
    assert demo.process.wait(60) == 141
    assert demo.left_running() == []
    assert demo.leftovers() == []


def test_kept_servers_serve_the_command_line_until_ctrl_c(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo("--keep")
    said = demo.read_until("Ctrl-C stops them")
    exported = dict(re.findall(r"export (MAXWELL_\w+)=(\S+)", said))
    listed = subprocess.run(
        [sys.executable, "-m", "maxwell", "list", "--json"],
        env={**os.environ, **exported, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    states = {entry["name"]: entry["state"] for entry in json.loads(listed.stdout)}
    assert states.pop("switched-off") == "down"
    assert states == dict.fromkeys(("paid-fast", "free-medium", "free-slow", "embedder"), "up")
    demo.process.send_signal(signal.SIGINT)
    code, _, errors = demo.end()
    assert (code, errors) == (0, "")
    assert demo.left_running() == []
    assert demo.leftovers() == []


@pytest.mark.parametrize("module", ["gguf", "xllamacpp"])
def test_missing_extra_is_one_line(module: str, tmp_path: Path) -> None:
    """The module is hidden from the servers' processes, too."""
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('hidden', name={module!r})")
    done = subprocess.run(
        [sys.executable, "-m", "maxwell", "demo"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SOURCE}", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("maxwell: error: ")
    assert f"needs {module}, which is not installed: pip install 'maxwell-lm[local]'\n" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("maxwell-demo")] == []
