"""`maxwell up MODEL.gguf`: serve a model here with llama.cpp and declare it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from maxwell.cli.render import print_json
from maxwell.errors import MaxwellError, RegistryError
from maxwell.local.gguf_header import read_header
from maxwell.local.server import LocalServer, describe_status, entry_name, registry_entry
from maxwell.registry.edit import Section, add_entry, rewrite
from maxwell.registry.locate import global_registry

_INTERRUPTED = 130
_NUMBER = click.IntRange(min=0)


@click.command("up")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the registry entry.  [default: the file's name]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 = any free one."
)
@click.option(
    "--ctx-size",
    type=_NUMBER,
    default=0,
    help="Tokens of context, shared out among requests served at once.  [default: for each, the model's own]",
)
@click.option(
    "--parallel", type=click.IntRange(min=1), default=1, show_default=True, help="Requests served at once."
)
@click.option(
    "--threads", type=_NUMBER, default=0, help="Threads that compute.  [default: one per physical core]"
)
@click.option(
    "--embedding/--chat", default=None, help="Serve embeddings, or chat.  [default: as the model file says]"
)
@click.option("--api-key-env", metavar="VAR", help="Demand the key that this environment variable holds.")
@click.option("--add", is_flag=True, help="Write the entry into the registry.")
@click.option(
    "--registry",
    type=click.Path(path_type=Path),
    help="Registry file for --add.  [default: ~/.maxwell/lm_registry.json]",
)
@click.option("--verbose", is_flag=True, help="Show llama.cpp's own log on stderr.")
def up(  # noqa: PLR0913 - click hands over each option by itself
    model: Path,
    name: str | None,
    host: str,
    port: int,
    ctx_size: int,
    parallel: int,
    threads: int,
    embedding: bool | None,
    api_key_env: str | None,
    add: bool,
    registry: Path | None,
    verbose: bool,
) -> None:
    """Serve a GGUF model on this machine with llama.cpp and print its registry entry.

    Chat, embeddings or reranking, as the model file says.

    Stays in the foreground; Ctrl-C stops the server. Needs pip install 'maxwell-lm[local]'.
    """
    section = _section(model, embedding)
    key = _key(api_key_env)
    named = name or entry_name(model)
    target = registry or global_registry(os.environ)
    if add:
        _refuse_taken_name(named, target)
    serving = False
    server = LocalServer(
        model,
        host=host,
        port=port,
        context=ctx_size,
        slots=parallel,
        threads=threads,
        api_key=key,
        embedding=section != "llms",
        verbose=verbose,
    )
    try:
        with _spinner(f"loading {model.name} and measuring it", shown=not verbose):
            url = server.wait_ready(timeout=None)
            entry = registry_entry(
                url, model, name=named, api_key=key, api_key_env=api_key_env, section=section
            )
        if add:
            rewrite(target, lambda text: add_entry(text, section, entry))
        serving = True
        where = f"added to {target}" if add else f'--add writes it under "{section}" in {target}'
        _announce(entry, where, is_open=key is None and not _is_loopback(host))
        status = server.wait()
    except KeyboardInterrupt:
        if not serving:
            raise click.exceptions.Exit(_INTERRUPTED) from None
    except MaxwellError as error:
        raise click.ClickException(str(error)) from error
    else:
        ended = describe_status(status)
        raise click.ClickException(f"the server of {named} ended by itself: {ended}; --verbose shows its log")
    finally:
        server.stop()
    _hint(f"stopped {named}")


def _section(model: Path, embedding: bool | None) -> Section:
    """Where in the registry the entry belongs: what the user says, else what the file says."""
    try:
        header = read_header(model)
    except OSError as error:
        raise click.ClickException(f"cannot read the model {model}: {error.strerror}") from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if header.reranker:
        if embedding is not None:
            raise click.ClickException(f"{model} is a reranker; leave out --embedding and --chat")
        return "rerankers"
    return "embeddings" if (header.embedding if embedding is None else embedding) else "llms"


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise click.ClickException(f"--api-key-env: environment variable {variable} is not set")
    return key


def _refuse_taken_name(name: str, target: Path) -> None:
    """Before a large model is loaded for nothing."""
    try:
        text = target.read_text("utf-8")
        add_entry(text, "llms", {"name": name})
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"cannot read the registry {target}: {error}") from error
    except RegistryError as error:
        if error.problems[0].path.endswith(".name"):
            said = (
                f'{target} has an entry named "{name}"; choose another name with --name, or leave --add out'
            )
        else:
            said = str(RegistryError(str(target), error.problems))
        raise click.ClickException(said) from error


def _announce(entry: dict[str, Any], where: str, *, is_open: bool) -> None:
    print_json(entry)
    _hint(f"the entry above: {where}")
    if is_open:
        _hint("everyone who can reach this machine may use it; --api-key-env demands a key")
    _hint(f"serving {entry['name']} on {entry['api_base']}; Ctrl-C stops it")


@contextmanager
def _spinner(text: str, *, shown: bool) -> Iterator[None]:
    if not (shown and sys.stderr.isatty()):
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def _hint(text: str) -> None:
    click.echo(text, err=True)


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
