"""`maxwell registry` (schema, check, show, lock) and `maxwell trust`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from maxwell import registry as reg
from maxwell.cli.lock_command import lock_command
from maxwell.cli.render import plural, print_json
from maxwell.errors import RegistryError
from maxwell.registry.endpoints import api_key, key_problem

EXIT_REGISTRY = 3

_SOURCES = {
    "argument": "named on the command line",
    "environment": "named by MAXWELL_REGISTRY",
    "project": "of this project",
    "home": "your own",
}

registry_option = click.option(
    "--registry", "named", metavar="PATH", help="Registry file; found by the usual order when absent."
)
path_argument = click.argument("path", required=False)


@contextmanager
def registry_errors() -> Iterator[None]:
    """Print a `RegistryError` to stderr, one line a problem in the form editors jump to, and end."""
    try:
        yield
    except RegistryError as error:
        for line in error.lines():
            click.echo(line if error.file else f"maxwell: error: {line}", err=True)
        raise SystemExit(EXIT_REGISTRY) from None


@click.group("registry")
def registry() -> None:
    """Look at the registry file: which one, what is in it, is it right; lock its embeddings."""


registry.add_command(lock_command)


@registry.command("schema")
def schema_command() -> None:
    """Print the JSON Schema of a registry file."""
    print_json(reg.schema())


@registry.command("check")
@path_argument
@registry_option
def check_command(path: str | None, named: str | None) -> None:
    """Report every problem of a registry file at once.

    Exit code 0: none; 3: the file has problems, or there is none. Warnings do not change it.
    """
    with registry_errors():
        located = reg.find(_one(path, named))
        loaded = reg.load(located)
    warnings = reg.advise(loaded)
    for problem in warnings:
        place = f"{problem.path}: " if problem.path else ""
        click.echo(f"{short(located.path)}: warning: {place}{problem.message}", err=True)
    counts = f"{plural(len(loaded.llms), 'LLM')}, {plural(len(loaded.embeddings), 'embedding')}"
    counts += f", {plural(len(loaded.rerankers), 'reranker')}" if loaded.rerankers else ""
    outcome = plural(len(warnings), "warning") if warnings else "no problems"
    click.echo(f"{short(located.path)}: {counts}, {outcome}")


@registry.command("show")
@registry_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_command(named: str | None, as_json: bool) -> None:
    """Show which registry is used, why, and what is in it."""
    with registry_errors():
        located = reg.find(named)
        loaded = reg.load(located)
    if as_json:
        print_json(_described(located, loaded))
        return
    click.echo(f"{short(located.path)} ({_SOURCES[located.source]})")
    for place in located.looked[:-1]:
        click.echo(f"  looked before at {short(place)}: none")
    if not loaded.trusted and any(spec.api_key_env for spec in _specs(loaded)):
        click.echo(
            f"  not trusted: may not use api_key_env until you run `maxwell trust {short(located.path)}`"
        )
    kinds: list[tuple[str, tuple[reg.Spec, ...]]] = [
        ("LLMs", loaded.llms),
        ("Embeddings", loaded.embeddings),
        ("Rerankers", loaded.rerankers),
    ]
    for title, specs in kinds:
        if specs:
            click.echo(title)
        for spec in specs:
            click.echo(f"  {spec.name}: {', '.join(_features(spec, loaded))}")


@click.command("trust")
@path_argument
@registry_option
def trust_command(path: str | None, named: str | None) -> None:
    """Allow a project's registry to send keys to the hosts it names.

    The file stays trusted until its content changes by any other hand than Maxwell's.
    """
    with registry_errors():
        located = reg.find(_one(path, named))
        loaded = reg.load(located)
    own = reg.global_registry(os.environ)
    if located.path.resolve() == own.resolve():
        click.echo(f"{short(located.path)} is your own registry; it needs no trust")
        return
    receivers = _receivers(loaded)
    for line in receivers or ["no entry names api_key_env: no host would get a key"]:
        click.echo(line)
    try:
        notice = reg.trust(located.path, loaded.digest, reg.maxwell_home(os.environ))
    except OSError as error:
        click.echo(f"cannot record the trust: {error.strerror or error}", err=True)
        raise SystemExit(EXIT_REGISTRY) from None
    if notice:
        click.echo(notice, err=True)
    click.echo(f"{short(located.path)}: trusted as it is now")


def short(path: Path) -> str:
    """A path with the home directory written `~`."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def _one(path: str | None, named: str | None) -> str | None:
    if path is not None and named is not None:
        raise click.UsageError("Give either PATH or --registry, not both.")
    return path if named is None else named


def _specs(loaded: reg.Registry) -> tuple[reg.Spec, ...]:
    return (*loaded.llms, *loaded.embeddings, *loaded.rerankers)


def _receivers(loaded: reg.Registry) -> list[str]:
    """`https://host gets $VARIABLE (entries)`, a line for each pair."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for spec in _specs(loaded):
        if spec.api_key_env:
            pairs.setdefault((spec.api_base, spec.api_key_env), []).append(spec.name)
    return [f"{base} gets ${variable} ({', '.join(names)})" for (base, variable), names in pairs.items()]


def _features(spec: reg.Spec, loaded: reg.Registry) -> list[str]:
    features = [spec.api_base]
    if isinstance(spec, reg.LLMSpec):
        can = spec.capabilities
        features += [
            spec.backend,
            f"{can.max_context} tokens of context",
            f"{can.speed_tokens_per_sec:g} tokens/s",
        ]
        able = ("reasoning", "vision", "code_specialized", "tools")
        features += [name for name in able if getattr(can, name)]
        features.append(f"tier {spec.tier}")
    else:
        if isinstance(spec, reg.EmbeddingSpec):
            features.append(f"{spec.dimension} dimensions")
        features.append(f"{spec.max_context} tokens of context")
    features.append("free" if spec.is_free else f"${spec.price_prompt:g} per 1000 prompt tokens")
    if spec.tags:
        features.append("tags " + " ".join(spec.tags))
    if problem := key_problem(spec, loaded, os.environ):
        features.append(problem)
    return features


def _described(located: reg.Located, loaded: reg.Registry) -> dict[str, Any]:
    return {
        "path": str(located.path),
        "source": located.source,
        "looked": [str(place) for place in located.looked],
        "project": loaded.project,
        "trusted": loaded.trusted,
        "digest": loaded.digest,
        "budget_timezone": loaded.budget_timezone,
        "llms": [_entry(spec, loaded) for spec in loaded.llms],
        "embeddings": [_entry(spec, loaded) for spec in loaded.embeddings],
        "rerankers": [_entry(spec, loaded) for spec in loaded.rerankers],
    }


def _entry(spec: reg.Spec, loaded: reg.Registry) -> dict[str, Any]:
    """An entry in short; of its key only where it comes from and whether it is there."""
    entry: dict[str, Any] = {
        "name": spec.name,
        "api_base": spec.api_base,
        "model": spec.model,
        "backend": spec.backend,
        "tags": list(spec.tags),
        "free": spec.is_free,
        "daily_budget_tokens": spec.daily_budget_tokens,
        "daily_budget_usd": spec.daily_budget_usd,
        "api_key_env": spec.api_key_env,
        "has_key": api_key(spec, loaded, os.environ) is not None,
        "max_context": spec.capabilities.max_context if isinstance(spec, reg.LLMSpec) else spec.max_context,
    }
    if isinstance(spec, reg.LLMSpec):
        entry |= {"tier": spec.tier, "speed_tokens_per_sec": spec.capabilities.speed_tokens_per_sec}
    elif isinstance(spec, reg.EmbeddingSpec):
        entry |= {"dimension": spec.dimension}
    return entry
