"""al-trainer models: the versions of a campaign and which of them answers."""

from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from services.common.bucket_registry import open_registry
from services.common.errors import NotFound, did_you_mean
from services.common.manifest import Manifest
from services.common.registry import Registry
from services.trainer import wiring
from services.trainer.plain_models import import_plain

app = typer.Typer(no_args_is_help=True, help="Model versions: list, import, promote, roll back, pin, prune.")
console = Console()

Campaign = Annotated[str, typer.Argument(help="A campaign's name.")]
Version = Annotated[int, typer.Argument(help="A published version.")]


def _registry(campaign: str) -> Registry:
    registry = open_registry(wiring.settings().registry_dir, wiring.settings().registry_bucket)
    if not registry.versions(campaign):
        raise NotFound(f"no model {campaign!r}; {did_you_mean(campaign, registry.campaigns())}")
    return registry


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}%"


def _variants(manifest: Manifest) -> str:
    """Each with its agreement with fp32."""
    checks = [(kind, manifest.variants[kind]) for kind in sorted(manifest.published_variants)]
    return ", ".join(f"{kind} {check.agreement or 0:.2%}" for kind, check in checks)


@app.command("list")
def list_versions(campaign: Campaign) -> None:
    """Published versions; * marks the promoted one, p a pinned one."""
    registry = _registry(campaign)
    current, pinned = registry.current(campaign), registry.pinned(campaign)
    headings = ("", "version", "round", "labels", "head", "accuracy", "macro F1", "ECE", "variants", "created")
    table = Table(*headings, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for version in registry.versions(campaign):
        manifest = registry.manifest(campaign, version)
        test = manifest.metrics.get("test", {})
        mark = ("*" if version == current else "") + ("p" if version in pinned else "")
        table.add_row(
            mark,
            str(version),
            str(manifest.round),
            str(manifest.labels_used),
            manifest.head,
            _percent(test.get("accuracy")),
            _percent(test.get("macro_f1")),
            f"{test['ece']:.3f}" if "ece" in test else "",
            _variants(manifest),
            manifest.created_at.strftime("%m-%d %H:%M"),
        )
    console.print(table)
    for version in registry.versions(campaign):
        for kind, check in registry.manifest(campaign, version).variants.items():
            if check.refused:
                console.print(f"version {version} has no {kind}: {check.refused}", highlight=False)


@app.command("import")
def import_command(
    name: Annotated[str, typer.Argument(help="What clients will call it.")],
    graph: Annotated[Path, typer.Argument(help="An ONNX file with one input and a free batch dimension.")],
    promote_it: Annotated[bool, typer.Option("--promote/--no-promote", help="Let it answer at once.")] = True,
) -> None:
    """Serve a network that Querent did not train: it answers ModelInfer, tensors in and tensors out.

    Example:

      al-trainer models import mobilenet mobilenet.onnx
    """
    registry = open_registry(wiring.settings().registry_dir, wiring.settings().registry_bucket)
    version = import_plain(registry, name, graph)
    if promote_it:
        registry.promote(name, version)
    console.print(f"{name} version {version} is published{' and answers' if promote_it else ''}")


@app.command()
def promote(campaign: Campaign, version: Version) -> None:
    """Make a published version the one that answers."""
    _registry(campaign).promote(campaign, version)
    console.print(f"{campaign} answers with version {version}")


@app.command()
def rollback(campaign: Campaign) -> None:
    """Promote the trained version before the current one."""
    version = _registry(campaign).rollback(campaign)
    console.print(f"{campaign} answers with version {version}")


@app.command()
def pin(
    campaign: Campaign,
    version: Version,
    off: Annotated[bool, typer.Option("--off", help="Unpin instead.")] = False,
) -> None:
    """Keep a version from being pruned."""
    _registry(campaign).pin(campaign, version, pinned=not off)
    console.print(f"version {version} is {'not pinned any more' if off else 'pinned'}")


@app.command()
def prune(
    campaign: Campaign,
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest versions to keep.")] = 5,
) -> None:
    """Delete versions except the current one, the newest and the pinned."""
    gone = _registry(campaign).prune(campaign, keep)
    console.print(f"deleted {len(gone)} versions{': ' + ', '.join(map(str, gone)) if gone else ''}")
