"""al-trainer labels: labels that come to a campaign from outside its rounds, and those that look wrong."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.common.embeddings import EmbeddingStore
from services.common.errors import BadRequest
from services.common.files import write_atomically
from services.common.samples import SampleStore
from services.trainer import wiring
from services.trainer.campaign import Campaign, Standing
from services.trainer.feedback import (
    CONFLICT,
    DISAGREE,
    KNOWN,
    NOT_IN_SOURCE,
    REASONS,
    LeftOut,
    Told,
    Verdict,
    import_feedback,
    read_feedback,
)
from services.trainer.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from services.trainer.audit import Suspect
    from services.trainer.auditing import Audit
    from services.trainer.pool_scorer import Version

app = typer.Typer(
    no_args_is_help=True, help="A campaign's labels: import what was told about predictions, find the wrong ones."
)
console = Console()

# Worth a look by somebody: what each says is listed.
_LISTED = (CONFLICT, DISAGREE, NOT_IN_SOURCE)
_LINES_EACH = 10


@app.command("import-feedback")
def import_feedback_command(
    name: Annotated[str, typer.Argument(metavar="CAMPAIGN", help="The campaign that gets the labels.")],
    paths: Annotated[
        list[Path], typer.Argument(metavar="JOURNAL_DIR", help="Feedback folders of inference, or single journals.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be imported.")] = False,
    left_out: Annotated[
        Path | None, typer.Option(help="Write every answer that is not imported to this file, with the reason.")
    ] = None,
) -> None:
    """Import the answers that inference has journalled as labels of a campaign.

    They count against the campaign's budget, and its next round trains on them. Labels that are there never change,
    test samples never become labels, and importing the same journals again changes nothing. The journals stay as they
    are.

    Examples:

      al-trainer labels import-feedback pets-1 .querent/feedback --dry-run

      al-trainer labels import-feedback pets-1 /mnt/replica-a /mnt/replica-b --left-out left-out.jsonl

    Exit code 1 when the journals hold nothing that the campaign could use or has already.
    """
    settings = wiring.settings()
    stores = wiring.open_stores(settings)
    campaign = stores.campaigns.campaign(name)
    told = read_feedback(paths)
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, campaign.source_id)
    verdict, standing = import_feedback(campaign, told, samples, stores.imports, dry_run)
    if left_out is not None:
        write_atomically(left_out, b"".join(_records(verdict.left_out)))
    console.print(_summary(told, verdict, dry_run))
    for line in _details(told, verdict):
        console.print(line, highlight=False, soft_wrap=True)
    if not verdict.taken and not any(it.why == KNOWN for it in verdict.left_out):
        raise BadRequest(f"nothing in these journals can be imported into {campaign.name}")
    console.print(_outcome(campaign, verdict, standing, dry_run), highlight=False, soft_wrap=True)


@app.command()
def audit(
    name: Annotated[str, typer.Argument(metavar="CAMPAIGN", help="The campaign whose labels are looked at.")],
    limit: Annotated[int, typer.Option(min=1, help="How many the page shows, the most doubtful first.")] = 60,
    page: Annotated[
        Path | None,
        typer.Option(help="Where the page goes, and a CSV of all beside it; the report's folder by default."),
    ] = None,
) -> None:
    """List labels that are probably wrong, with the class that the others suggest and their pictures.

    A logistic head is fitted by folds on the stored embeddings of all labelled samples, so that each label is judged
    by a fit that has not seen it. Nothing is changed.

    Example: al-trainer labels audit pets-1
    """
    from services.trainer.auditing import audit_campaign
    from services.trainer.learning import SilentWatch
    from services.trainer.report.audit_page import audit_csv, audit_page

    settings = wiring.settings()
    stores = wiring.open_stores(settings)
    campaign = stores.campaigns.campaign(name)
    embeddings = partial(_embeddings, settings)
    found = audit_campaign(campaign, stores.campaigns, stores.registry, embeddings, SilentWatch())
    told = _audit_told(found, limit)
    shown = found.suspects[:limit]
    samples = SampleStore.open(settings.sources_dir, settings.data_dir, campaign.source_id)
    images = samples.images([it.sample_id for it in shown])
    page = page or settings.reports_dir / campaign.name / "audit.html"
    write_atomically(page.with_suffix(".csv"), audit_csv(found.suspects, campaign.classes).encode())
    subtitle = " ".join(told)
    write_atomically(page, audit_page(campaign.name, subtitle, shown, campaign.classes, images).encode())
    if shown:
        console.print(_suspects_table(shown[: 2 * _LINES_EACH], campaign.classes))
    for line in told:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"pictures: {page}", highlight=False, soft_wrap=True)


def _embeddings(settings: Settings, at: "Version", ids: Sequence[str]) -> "np.ndarray":
    """Read where they are all stored; else inference is asked, which embeds what is missing."""
    from services.trainer.learning import SilentWatch
    from services.trainer.pool_scorer import GrpcPoolScorer

    stored = EmbeddingStore(settings.embeddings_dir, at.embedding_id, at.source_id)
    if not stored.missing(ids):
        return stored.read(ids)
    scorer = GrpcPoolScorer(settings.inference_address, settings.embeddings_dir, 1, settings.inference_access)
    try:
        return scorer.embeddings(at, ids, SilentWatch())
    finally:
        scorer.close()


def _audit_told(found: "Audit", limit: int) -> list[str]:
    suspects, labels = len(found.suspects), len(found.labels)
    told = [f"{suspects:,} of {_count(labels, 'label')} look wrong."]
    if suspects > limit:
        told.append(f"The {limit:,} most doubtful are shown; the CSV has all.")
    if found.flipped:
        right = sum(it.sample_id in found.flipped for it in found.suspects)
        told.append(f"The simulated oracle got {len(found.flipped):,} wrong on purpose; {right:,} of them are listed.")
    if found.backbone_knows_labels:
        told.append("The network was trained on these labels and defends them: this list is short of some.")
    return told


def _suspects_table(suspects: "Sequence[Suspect]", classes: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("sample", "labelled", "rather"):
        table.add_column(heading, no_wrap=heading == "sample")
    for it in suspects:
        given = f"{classes[it.given]} {it.given_probability:.0%}"
        table.add_row(it.sample_id, escape(given), escape(f"{classes[it.suggested]} {it.suggested_probability:.0%}"))
    return table


def _records(left_out: Iterable[LeftOut]) -> Iterable[bytes]:
    for it in left_out:
        yield json.dumps({**asdict(it.feedback), "why": it.why, "labelled_as": it.labelled_as}).encode() + b"\n"


def _summary(told: Told, verdict: Verdict, dry_run: bool) -> Table:
    lines = len(told.feedback) + len(told.damaged)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(f"{_count(lines, 'answer')} in {_count(len(told.journals), 'journal')}")
    table.add_column("answers", justify="right")
    table.add_row("would be imported" if dry_run else "imported", str(len(verdict.taken)), style="bold")
    counts = Counter(it.why for it in verdict.left_out)
    for why in REASONS:
        if counts[why]:
            table.add_row(why, str(counts[why]))
    if told.damaged:
        table.add_row("damaged lines", str(len(told.damaged)))
    return table


def _details(told: Told, verdict: Verdict) -> Iterable[str]:
    for why in _LISTED:
        lines = [escape(_line(it)) for it in verdict.left_out if it.why == why]
        if lines:
            yield from _some(f"{why}:", lines, "--left-out FILE lists all")
    lines = [escape(f"{it.journal}, line {it.line}: {it.why}") for it in told.damaged]
    if lines:
        yield from _some("damaged lines:", lines, "the journals have them all")


def _some(heading: str, lines: Sequence[str], where_more: str) -> Iterable[str]:
    yield heading
    yield from (f"  {line}" for line in lines[:_LINES_EACH])
    if len(lines) > _LINES_EACH:
        yield f"  and {len(lines) - _LINES_EACH} more; {where_more}"


def _line(it: LeftOut) -> str:
    by = f" by {it.feedback.annotator}" if it.feedback.annotator else ""
    labelled = f", labelled {it.labelled_as!r}" if it.labelled_as else ""
    return f"{it.feedback.sample_id}: told {it.feedback.label!r}{by}{labelled}"


def _outcome(campaign: Campaign, verdict: Verdict, standing: Standing, dry_run: bool) -> str:
    taken = len(verdict.taken)
    left = f"{standing.room - taken} of {campaign.config.budget} labels are left in the budget"
    if not taken:
        return f"nothing new for {campaign.name}; {left}"
    would = "would train" if dry_run else "trains"
    state = "" if campaign.state == "running" else f" ({campaign.name} is {campaign.state})"
    return f"round {standing.round_no} {would} on {_count(taken, 'new label')}{state}; {left}"


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
