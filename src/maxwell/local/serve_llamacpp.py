"""A llama.cpp server as a command: `python -m maxwell.local.serve_llamacpp -m MODEL.gguf`.

The extra `local` brings llama.cpp's own C++ server as a library; this runs it in a process of its own.
Once the model is loaded, one line `READY http://host:port` appears on stdout. What goes wrong before that is
one line on stderr and exit code 1. SIGTERM and SIGINT end the process at once.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from maxwell.local.gguf_header import read_header

KEY_VARIABLE = "LLAMA_API_KEY"  # llama-server's own name for it
POOLINGS = ("none", "mean", "cls", "last", "rank")

# `0.00.002.637 E srv         start: couldn't bind ...`: time, level, module, function, message
_ERROR_LINE = re.compile(r"^[\d.]+ E (?:\w+ +)?[\w:~()]+: (.+)$", re.MULTILINE)


class _StartError(Exception):
    """The server cannot be started; the message is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until ended. Returns the exit code."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        # A handler in Python would wait while llama.cpp loads; and there is nothing to tidy up.
        signal.signal(number, signal.SIG_DFL)
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as stdout:
        try:
            server = _start(options)
        except _StartError as error:
            print(error, file=sys.stderr)  # noqa: T201 - this is a command
            return 1
        print("READY", server.listening_address, file=stdout, flush=True)
    if options.exit_with_parent:
        sys.stdin.buffer.read()
    else:
        signal.pause()
    os._exit(0)  # tearing the server down would first wait for what it is generating


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve_llamacpp", description="Serve one GGUF model with llama.cpp."
    )
    add = parser.add_argument
    add("-m", "--model", type=Path, required=True, help="the GGUF file")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_count, default=8080, help="0 = any free one; READY tells which")
    add(
        "-c",
        "--ctx-size",
        type=_count,
        default=0,
        help="tokens for all slots; 0 = for each the model's own",
    )
    add("-np", "--parallel", type=_count, default=1, help="slots: requests served at once")
    add("-t", "--threads", type=_count, default=0, help="0 = one for each physical core")
    add("-a", "--alias", help="name to serve the model under instead of its path")
    add("--api-key", default=os.environ.get(KEY_VARIABLE), help=f"demand this key; default ${KEY_VARIABLE}")
    add("--embedding", action="store_true", help="serve embeddings instead of chat; a reranker ranks")
    add("--pooling", choices=POOLINGS, help="how an embedding is made of its tokens; default the model's own")
    add("--metrics", action="store_true", help="serve GET /metrics")
    add("--props", action="store_true", help="allow changing settings by POST /props")
    add("--exit-with-parent", action="store_true", help="end when stdin ends")
    add("--verbose", action="store_true", help="let llama.cpp log to stderr")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 31:
        raise ValueError
    return number


def _start(options: argparse.Namespace) -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise _StartError(
            f"serving a model needs {error.name}, which is not installed: pip install 'maxwell-lm[local]'"
        ) from error
    parameters = _parameters(xllamacpp, options)
    _check_address(options.host, options.port)
    with _diverted_output(options.verbose) as log:
        try:
            return xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise _StartError(f"llama.cpp could not serve {options.model}: {_reason(log, error)}") from error


def _parameters(xllamacpp: Any, options: argparse.Namespace) -> Any:
    try:
        header = read_header(options.model)
    except OSError as error:
        raise _StartError(f"cannot read the model {options.model}: {error.strerror}") from error
    except ValueError as error:
        raise _StartError(str(error)) from error
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.model)
    parameters.hostnames = [options.host]
    parameters.port = options.port
    parameters.n_ctx = options.ctx_size
    parameters.n_parallel = options.parallel
    parameters.cpuparams.n_threads = options.threads or -1
    parameters.endpoint_metrics = options.metrics
    parameters.endpoint_props = options.props
    # By default llama.cpp lets every web page that a browser on this machine shows use the server.
    parameters.cors_origins = ""
    if options.alias:
        parameters.model_alias = {options.alias}
    if options.api_key:
        parameters.api_keys = [options.api_key]
    if options.embedding:
        parameters.embedding = True
        # An input must fit one batch; by default that is 512 tokens, however large the context is.
        parameters.n_batch = parameters.n_ubatch = options.ctx_size or header.context or parameters.n_batch
    # A reranker's file says what it is, and llama.cpp ranks only when told to.
    pooling = options.pooling or ("rank" if options.embedding and header.reranker else None)
    if pooling:
        kind = f"LLAMA_POOLING_TYPE_{pooling.upper()}"
        parameters.pooling_type = getattr(xllamacpp.llama_pooling_type, kind)
    return parameters


def _check_address(host: str, port: int) -> None:
    """Say plainly what llama.cpp would only log."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise _StartError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
        ) from error


@contextmanager
def _diverted_output(verbose: bool) -> Iterator[IO[bytes]]:
    """Turn what llama.cpp writes away from the process's output: into a log while it starts, then nowhere.

    If it does not start, the output is as before. Verbose: it all goes to stderr.
    """
    with tempfile.TemporaryFile() as log, Path(os.devnull).open("wb") as nowhere:
        if verbose:
            os.dup2(2, 1)
            yield log
            return
        before = [os.dup(number) for number in (1, 2)]
        _point_output_at(log.fileno(), log.fileno())
        try:
            yield log
        except BaseException:
            _point_output_at(*before)
            raise
        else:
            _point_output_at(nowhere.fileno(), nowhere.fileno())
        finally:
            for number in before:
                os.close(number)


def _point_output_at(stdout: int, stderr: int) -> None:
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def _reason(log: IO[bytes], error: RuntimeError) -> str:
    """The first error that llama.cpp logged, which names the cause; the later ones only repeat it."""
    log.seek(0)
    found = _ERROR_LINE.search(log.read().decode(errors="replace"))
    return found[1].strip() if found else str(error)


if __name__ == "__main__":
    sys.exit(main())
