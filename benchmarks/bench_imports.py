"""What importing Maxwell costs, in milliseconds and megabytes, each in a fresh interpreter.

Goal for `from maxwell.lm_pool import get_lm`: 60 ms beyond the bare interpreter. Others join when installed.

Run: python benchmarks/bench_imports.py
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from tables import Spread, options, show, spread

CASES = [
    ("(nothing: the bare interpreter)", "pass", ""),
    ("import maxwell", "import maxwell", "maxwell"),
    ("from maxwell.lm_pool import get_lm", "from maxwell.lm_pool import get_lm", "maxwell"),
    ("from maxwell.pools import LLMPool (by the first call)", "from maxwell.pools import LLMPool", "maxwell"),
    ("import msgspec", "import msgspec", "msgspec"),
    ("import urllib3", "import urllib3", "urllib3"),
    ("import aiohttp", "import aiohttp", "aiohttp"),
    ("import httpx2", "import httpx2", "httpx2"),
    ("import openai", "import openai", "openai"),
    ("import litellm", "import litellm", "litellm"),
]

# One child a measurement; its own clock, from before the import to after it, and its largest resident size.
CHILD = """
import time, resource
began = time.perf_counter()
{statement}
took = time.perf_counter() - began
print(took * 1000, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure(statement: str, rounds: int) -> tuple[Spread, Spread]:
    times, sizes = [], []
    for round_ in range(rounds + 1):
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(statement=statement)],
            capture_output=True,
            text=True,
            check=True,
        )
        milliseconds, kilobytes = map(float, done.stdout.split())
        if round_:  # the first one may still write byte code
            times.append(milliseconds)
            sizes.append(kilobytes / 1024)
    return spread(times), spread(sizes)


def main() -> None:
    given = options(__doc__)
    rounds = 3 if given.quick else 15
    rows: list[list[object]] = []
    for name, statement, module in CASES:
        if module and importlib.util.find_spec(module) is None:
            rows.append([name, "not installed", ""])
            continue
        took, size = measure(statement, rounds)
        rows.append([name, took, size])
    show("Imports (goal for lm_pool: 60 ms)", ["what", "ms", "MB resident"], rows, as_json=given.json)


if __name__ == "__main__":
    main()
