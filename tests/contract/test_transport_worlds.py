"""The transport contract (see `maxwell.calls.transport`): threads, forked processes, event loops."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from transport_harness import (
    CHUNKED,
    EVENT,
    KINDS,
    LAST_CHUNK,
    SOON,
    AsyncCaller,
    Heard,
    Peer,
    Server,
    ask,
    begin,
    chunk,
    in_chunks,
    post,
    serving,
    whole,
)

from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.effects import Limits, TransportError


def test_serves_eight_threads_at_once(kind: str) -> None:
    # A sync transport is shared by the threads; an async one has a loop in each of them.
    shared = KINDS[kind]({})
    results: list[list[bytes]] = []

    def work(server: Server) -> None:
        caller = AsyncCaller(shared.transport) if isinstance(shared, AsyncCaller) else shared
        results.append([ask(caller, server.url) for _ in range(25)])
        if caller is not shared:
            caller.leave()

    with serving(in_chunks) as server:
        threads = [threading.Thread(target=work, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON * 3)
        assert results == [[b"ok"] * 25] * 8
        assert len(server.heard) == 200
        assert server.accepted <= 8
        shared.leave()


def run(kind: str, url: str, script: str, *, strict: bool = True) -> str:
    """What a fresh process prints that runs `script` with a `caller`; it may not warn or say more."""
    start = f"""
        import os, sys
        from transport_harness import KINDS, AsyncCaller
        from maxwell.types import HTTPRequest
        caller = KINDS[{kind!r}]({{}})
        def send(path="/", caller=caller):
            return caller.send(HTTPRequest("POST", {url!r} + path, {{}}, b"{{}}"))
        def read(exchange):
            return b"".join(iter(exchange.read, b"")).decode()
        def own(caller):
            return AsyncCaller(caller.transport) if isinstance(caller, AsyncCaller) else caller
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))
    done = subprocess.run(
        [
            sys.executable,
            *(["-W", "error", "-X", "dev"] if strict else []),
            "-c",
            textwrap.dedent(start + script),
        ],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def say_number(peer: Peer, heard: Heard) -> None:
    peer.send(whole(b"%d" % peer.number))


@pytest.mark.parametrize("loop", ["own(caller)", "caller"], ids=["own loop", "inherited loop"])
def test_works_in_a_forked_child_and_in_its_parent(kind: str, loop: str) -> None:
    script = f"""
        print(read(send()), flush=True)
        child = os.fork()
        if child == 0:
            caller = {loop}
            print(read(send(caller=caller)), read(send(caller=caller)), flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1], read(send()), flush=True)
        caller.leave()
    """
    with serving(say_number) as server:
        # The first connection is the parent's and stays so, the second is the child's.
        assert run(kind, server.url, script) == "1\n2 2\n0 1\n"


def test_a_forked_child_that_tidies_up_leaves_its_parents_exchanges_alone(kind: str) -> None:
    script = """
        read(send("/first"))
        exchange = send("/")
        print(len(exchange.read()), flush=True)
        if os.fork() == 0:
            caller = own(caller)
            read(send("/other", caller))
            caller.leave()
            del exchange
            sys.exit()  # finalizes everything, unlike os._exit
        print(os.wait()[1], read(send("/more")), len(read(exchange)))
        caller.leave()
    """
    more = threading.Event()

    def handler(peer: Peer, heard: Heard) -> None:
        if heard.target == "/":
            peer.send(CHUNKED + chunk(EVENT))
            assert more.wait(SOON)
            peer.send(chunk(EVENT) + LAST_CHUNK)
            return
        if heard.target == "/more":
            more.set()
        peer.send(whole(b"ok"))

    with serving(handler) as server:
        size = len(EVENT)
        assert run(kind, server.url, script, strict=False) == f"{size}\n0 ok {size}\n"


def test_closing_reaches_the_server_although_a_forked_child_lives_on(kind: str) -> None:
    script = """
        exchange = send("/")
        exchange.read()
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
        exchange.close()
        print(read(send("/seen")))
        os.close(theirs)
        os.wait()
        caller.leave()
    """

    def handler(peer: Peer, heard: Heard) -> None:
        if heard.target == "/":
            begin(peer, heard)
        else:
            server.gone.get(timeout=SOON / 2)
            peer.send(whole(b"seen"))

    with serving(handler) as server:
        assert run(kind, server.url, script) == "seen\n"


def test_works_in_one_loop_after_another(kind: str) -> None:
    script = """
        for _ in range(3):
            caller = own(caller)
            print(read(send(caller=caller)), read(send(caller=caller)), flush=True)
            caller.leave()
    """
    with serving(say_number) as server:
        # Each loop has one connection, and takes it along when it ends.
        assert run(kind, server.url, script) == "1 1\n2 2\n3 3\n"
        assert [server.gone.get(timeout=SOON) for _ in range(3)]


def test_an_exchange_left_open_ends_with_its_loop_without_a_word(kind: str) -> None:
    script = """
        exchange = send()
        print(len(exchange.read()))
        caller.leave()
        if not isinstance(caller, AsyncCaller):
            exchange.close()
    """
    with serving(begin) as server:
        assert run(kind, server.url, script) == f"{len(EVENT)}\n"
        assert server.gone.get(timeout=SOON)


def test_closing_an_async_transport_wakes_its_readers() -> None:
    async def main(url: str) -> None:
        transport = AiohttpTransport({})
        exchange = await transport.send(post(url), Limits())
        assert await exchange.read() == EVENT
        reader = asyncio.create_task(exchange.read())
        await asyncio.sleep(0.05)
        await transport.close()
        with pytest.raises(TransportError) as caught:
            await asyncio.wait_for(reader, SOON)
        assert caught.value.stage == "closed"

    with serving(begin) as server:
        asyncio.run(main(server.url))
