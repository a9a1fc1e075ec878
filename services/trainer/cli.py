"""al-trainer: start campaigns, watch them, and look after models."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.common.errors import BadRequest, Conflict, QuerentError, Unavailable
from services.common.observability import configure_logging
from services.trainer import compare_cli, grid_cli, labels_cli, models_cli, study_cli, wiring
from services.trainer.campaign import AT_REST, Campaign
from services.trainer.config import load_config
from services.trainer.follow import follow, progress_bars
from services.trainer.report.content import Outlook
from services.trainer.report.table import rounds_table
from services.trainer.reporting import outlook_of, report_rows, slices_of, write_campaign_report
from services.trainer.stopping import forecast

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Active-learning campaigns: start them, watch them, look after their models.",
    epilog="Example: `al-trainer run examples/cifar10-demo.yaml --follow`",
    pretty_exceptions_enable=False,
)
app.add_typer(models_cli.app, name="models")
app.add_typer(labels_cli.app, name="labels")
app.command(epilog="Example: `al-trainer compare examples/compare.yaml --follow`")(compare_cli.compare)
app.command(epilog="Example: `al-trainer grid examples/grid.yaml --local 2`")(grid_cli.grid)
app.command(epilog="Example: `al-trainer study examples/original-study.yaml --local 2`")(study_cli.study)
console = Console()

CampaignName = Annotated[str, typer.Argument(help="A campaign's name, as `al-trainer list` shows it.")]
MaybeCampaignName = Annotated[str | None, typer.Argument(help="A campaign's name; the newest when left out.")]


@app.command(epilog="Example: `al-trainer run examples/folder.yaml --follow`")
def run(
    config: Annotated[Path, typer.Argument(help="The campaign's YAML file.")],
    follow_it: Annotated[bool, typer.Option("--follow", help="Show progress until the campaign ends.")] = False,
    name_file: Annotated[Path | None, typer.Option(help="Write the new campaign's name to this file.")] = None,
) -> None:
    """Start a new campaign, named after the config with the next free number."""
    from services.trainer.campaigns import start_campaign
    from services.trainer.datasets import ensure_dataset

    settings, stores = wiring.settings(), wiring.open_stores(wiring.settings())
    wanted = load_config(config)
    if wanted.source.kind in ("cifar10", "digits"):
        ensure_dataset(wanted.source.kind, settings.data_dir, settings.data_dir, console.print)
    with progress_bars(console) as bars:
        tasks: dict[str, Any] = {}

        def progress(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task({"index": "listing images", "check": "checking images"}[phase])
            bars.update(tasks[phase], completed=done, total=total)

        campaign = start_campaign(
            wanted,
            stores.campaigns,
            settings.data_dir,
            settings.sources_dir,
            progress,
            taken=stores.registry.campaigns(),
        )
    console.print(f"campaign [bold]{campaign.name}[/] created")
    if name_file is not None:
        name_file.write_text(campaign.name)
    _enqueue_first(campaign)
    if follow_it:
        _follow(campaign.name)
    else:
        console.print(f"watch it with: al-trainer follow {campaign.name}")


def _enqueue_first(campaign: Campaign) -> None:
    """A hint to an idle worker; without it the worker finds the campaign by itself within seconds."""
    from services.trainer.tasks import enqueue

    try:
        enqueue("train_round", campaign.name, 0)
    except Unavailable as error:
        console.print(
            f"[yellow]{escape(str(error))}.[/] The campaign is recorded and a worker will find it; `al-trainer doctor` "
            "says what is missing."
        )


@app.command("follow")
def follow_command(campaign: MaybeCampaignName = None) -> None:
    """Show a campaign's progress until it ends. Ctrl-C leaves the campaign running."""
    _follow(_named(campaign).name)


def _follow(name: str) -> None:
    stores = wiring.open_stores(wiring.settings())
    try:
        ended = follow(
            stores.campaigns, name, console, lambda line: console.print(line, highlight=False, soft_wrap=True)
        )
    except KeyboardInterrupt:
        console.print(f"\n{name} goes on in its worker; watch it again with: al-trainer follow {name}")
        raise typer.Exit(130) from None
    rows = report_rows(stores.campaigns, name)
    if rows:
        console.print(rounds_table(rows))
    report = wiring.settings().reports_dir / name / "report.html"
    if report.is_file():
        console.print(f"report: {report}", highlight=False)
    if ended.state != "finished":
        console.print(f"[red]{name} is {ended.state}:[/] {escape(ended.reason)}", highlight=False)
        raise typer.Exit(1)
    console.print(f"{name} is finished: {escape(ended.reason)}", highlight=False)


@app.command()
def status(
    campaign: MaybeCampaignName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(help="How many more labels for this accuracy, as in 75%; may be given several times."),
    ] = None,
) -> None:
    """Where a campaign stands: state, progress, rounds, the promoted version, and how many more labels it needs.

    Example: al-trainer status pets-1 --target 75%
    """
    found = _named(campaign)
    targets = [_share(it) for it in target or []]
    settings = wiring.settings()
    stores = wiring.open_stores(settings)
    progress = stores.campaigns.progress(found.name)
    current = stores.registry.current(found.name)
    rounds = [r for r in stores.campaigns.rounds(found.name) if r.state == "done"]
    slices = slices_of(rounds)
    if as_json:
        value = {
            "name": found.name,
            "state": found.state,
            "reason": found.reason,
            "current_version": current,
            "budget": found.config.budget,
            "rounds": [
                {"round": r.round_no, "version": r.version, "promoted": r.promoted, **_numbers(r.report)}
                for r in rounds
            ],
            "stopping": rounds[-1].report.get("stopping", {}) if rounds else {},
            "forecasts": [asdict(forecast(slices, it)) for it in targets],
        }
        print(json.dumps(value))
        return
    console.print(f"[bold]{found.name}[/] is {found.state}{': ' + escape(found.reason) if found.reason else ''}")
    console.print(f"promoted version: {current or 'none yet'}; budget: {found.config.budget} labels")
    if progress is not None and found.state == "running":
        of = f" {progress.done}/{progress.total}" if progress.total else ""
        age = time.time() - progress.updated_at
        how = f": {progress.detail}" if progress.detail else ""
        console.print(f"now: round {progress.round_no}, {progress.phase}{of} ({age:.0f} s ago){how}")
    rows = report_rows(stores.campaigns, found.name)
    if rows:
        console.print(rounds_table(rows))
    if targets or slices:
        _show_outlook(outlook_of(found.config, rounds, targets))


def _show_outlook(outlook: Outlook) -> None:
    lines = [f"{target} on randomly drawn rows: {told}" for target, told in outlook.forecasts.items()]
    lines += [f"stopping by {rule}: {told}" for rule, told in outlook.standings.items()]
    for line in [*lines, outlook.cost]:
        console.print(line, highlight=False, soft_wrap=True)


def _share(given: str) -> float:
    """0.75 for "75%" and for "0.75"."""
    try:
        share = float(given.removesuffix("%")) / (100 if given.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise BadRequest(f"{given!r} is not an accuracy; give one between 0% and 100%, such as 75% or 0.75")
    return share


def _numbers(report: dict[str, Any]) -> dict[str, Any]:
    return {"labels": report["labels"], "metrics": report["metrics"]}


@app.command("list")
def list_command() -> None:
    """All campaigns, newest last."""
    stores = wiring.open_stores(wiring.settings())
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("campaign", no_wrap=True)
    for heading in ("state", "strategy", "backbone", "labels", "accuracy", "promoted"):
        table.add_column(heading)
    for campaign in stores.campaigns.campaigns():
        rows = report_rows(stores.campaigns, campaign.name)
        accuracy = f"{100 * rows[-1].metrics['test']['accuracy']:.1f}%" if rows else ""
        labels = f"{rows[-1].labels if rows else 0}/{campaign.config.budget}"
        current = stores.registry.current(campaign.name)
        table.add_row(
            campaign.name,
            campaign.state,
            campaign.config.strategy,
            campaign.config.backbone.name,
            labels,
            accuracy,
            f"v{current}" if current else "",
        )
    console.print(table if table.row_count else "no campaigns yet; start one with: al-trainer run CONFIG")


@app.command()
def pause(campaign: CampaignName) -> None:
    """Stop working on a campaign; what is done stays done."""
    _set_state(campaign, "paused", "paused by hand", ("running",))


@app.command()
def resume(campaign: CampaignName) -> None:
    """Go on with a paused or failed campaign where it stood."""
    _set_state(campaign, "running", "", ("paused", "failed"))


@app.command()
def cancel(campaign: CampaignName) -> None:
    """End a campaign for good; its labels and models stay."""
    _set_state(campaign, "cancelled", "cancelled by hand", ("running", "paused", "failed"))


def _set_state(name: str, state: Any, reason: str, only_from: tuple[str, ...]) -> None:
    wiring.open_stores(wiring.settings()).campaigns.set_state(name, state, reason, only_from)
    console.print(f"{name} is {state}")


@app.command()
def delete(
    campaign: CampaignName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a campaign that is at rest, with its labels, models and report. Stored embeddings stay."""
    stores = wiring.open_stores(wiring.settings())
    found = stores.campaigns.campaign(campaign)
    if found.state not in AT_REST:
        raise Conflict(f"{campaign} is {found.state}; first: al-trainer cancel {campaign}")
    owner = stores.leases.owner(campaign)
    if owner:
        raise Conflict(f"worker {owner} is just ending its work on {campaign}; try again in a moment")
    labels = len(stores.campaigns.labels(campaign))
    if not yes:
        typer.confirm(f"Delete {campaign} with {labels} labels and its models?", abort=True)
    # The rows first: a worker that still holds the campaign can then write nothing any more.
    stores.campaigns.delete(campaign)
    stores.registry.delete(campaign)
    shutil.rmtree(wiring.settings().reports_dir / campaign, ignore_errors=True)
    console.print(f"{campaign} is deleted")


@app.command()
def report(campaign: MaybeCampaignName = None) -> None:
    """Write a campaign's report again, at any time: as a page, as PNG pictures, as CSV and as JSON.

    Example: al-trainer report pets-1
    """
    settings = wiring.settings()
    stores = wiring.open_stores(settings)
    folders = wiring.report_folders(settings)
    folder = write_campaign_report(stores.campaigns, stores.registry, folders, _named(campaign).name)
    console.print(f"report: {folder / 'report.html'}", highlight=False)


@app.command()
def doctor() -> None:
    """Check Redis, database, registry, inference, data, weights and providers; say what to do."""
    from services.trainer.doctor import examine

    sound = True
    for finding in examine(wiring.settings()):
        sound &= finding.ok
        mark = "[green]ok[/]     " if finding.ok else "[red]problem[/]"
        console.print(f"{mark} {finding.name:<11}{escape(finding.detail)}", highlight=False, soft_wrap=True)
        if finding.advice:
            console.print(f"        {'':<11}→ {escape(finding.advice)}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if sound else 1)


@app.command(epilog="Example: `TRAINER_METRICS_PORT=8005 al-trainer metrics`")
def metrics() -> None:
    """Serve the gauges of every campaign on TRAINER_METRICS_PORT until SIGTERM, without working on any.

    For autoscaling from zero workers: somebody must say that there is work. Workers serve the same gauges.
    """
    from services.trainer.exporting import serve_campaign_metrics

    serve_campaign_metrics(wiring.settings())


@app.command()
def worker() -> None:
    """Work on campaigns until SIGTERM or Ctrl-C; metrics are on TRAINER_METRICS_PORT."""
    from services.trainer.serving import serve_worker

    serve_worker(wiring.settings())


def _named(name: str | None) -> Campaign:
    store = wiring.open_stores(wiring.settings()).campaigns
    if name is not None:
        return store.campaign(name)
    campaigns = store.campaigns()
    if not campaigns:
        raise Conflict("there are no campaigns yet; start one with: al-trainer run CONFIG")
    return campaigns[-1]


def _told(command: Callable[[], None]) -> Callable[[], None]:
    """Errors that are meant for the caller are one message, not a traceback."""

    @wraps(command)
    def wrapper() -> None:
        try:
            command()
        except ValidationError as error:
            _explain_settings(error)
            sys.exit(1)
        except QuerentError as error:
            Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
            sys.exit(1)
        except BrokenPipeError:
            os._exit(141)  # the reader of a pipe has gone

    return wrapper


def _explain_settings(error: ValidationError) -> None:
    """Every mistake in the environment, under the name of its variable."""
    for problem in error.errors():
        name = str(problem["loc"][0])
        variable = name if name.isupper() else f"TRAINER_{name.upper()}"
        Console(stderr=True).print(
            f"[red]error:[/] {variable}: {escape(problem['msg'])}", highlight=False, soft_wrap=True
        )


@_told
def main() -> None:
    configure_logging("WARNING", "console")
    app()


if __name__ == "__main__":
    main()
