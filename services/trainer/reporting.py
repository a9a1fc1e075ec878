"""From the database to the report on disk."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.trainer.campaign import Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import CampaignConfig
from services.trainer.report.content import CampaignReport, Outlook, RoundRow
from services.trainer.stopping import Slice, forecast, next_marks, slice_cost


def report_rows(store: CampaignStore, name: str) -> list[RoundRow]:
    """Finished rounds that trained something, oldest first."""
    return [_row(r) for r in store.rounds(name) if r.state == "done" and r.round_no > 0]


def _row(done: Round) -> RoundRow:
    return RoundRow(
        round_no=done.round_no,
        strategy=done.strategy,
        labels=done.report["labels"],
        version=done.version or done.round_no + 1,
        promoted=bool(done.promoted),
        metrics=done.report["metrics"],
        seconds=done.seconds,
        images_scored_per_second=done.images_per_second,
        class_counts=done.report["class_counts"],
    )


def slices_of(rounds: Sequence[Round]) -> list[Slice]:
    """Of the finished rounds that have randomly drawn rows, oldest first."""
    slices = [Slice.of_report(r.round_no, r.report) for r in rounds if r.state == "done"]
    return [it for it in slices if it.rows]


def outlook_of(config: CampaignConfig, rounds: Sequence[Round], targets: Sequence[float] = ()) -> Outlook:
    """What more labels would bring. Without targets: the campaign's own, else the next round accuracies."""
    slices = slices_of(rounds)
    own = [] if config.stopping.target_accuracy is None else [config.stopping.target_accuracy]
    asked = list(targets) or own or next_marks(slices)
    newest = [r.report.get("stopping", {}) for r in rounds if r.state == "done"][-1:]
    record: dict[str, Any] = newest[0] if newest else {}
    return Outlook(
        cost=slice_cost(slices, config.strategy),
        forecasts={f"{100 * it:g}%": forecast(slices, it).told for it in asked},
        standings=record.get("standings", {}),
        expected_gain=record.get("expected_gain"),
    )


def write_campaign_report(store: CampaignStore, name: str, reports_dir: Path, reason: str = "") -> Path:
    """Write everything about a campaign into reports_dir/<name>; gives that folder."""
    # matplotlib takes longer to import than most commands take to run.
    from services.trainer.report.write import write_report

    campaign = store.campaign(name)
    rows = report_rows(store, name)
    rounds = store.rounds(name)
    trained = [r for r in rounds if r.state == "done" and r.round_no > 0]
    report = CampaignReport(
        name=name,
        config=campaign.config.model_dump(mode="json"),
        classes=campaign.classes,
        rows=tuple(rows),
        confusion=trained[-1].report["confusion"] if trained else [],
        created=datetime.fromtimestamp(campaign.created_at, UTC),
        reason=reason or campaign.reason or campaign.state,
        source_id=campaign.source_id,
        outlook=outlook_of(campaign.config, rounds) if slices_of(rounds) else None,
    )
    folder = reports_dir / name
    write_report(folder, report)
    return folder
