"""From the database to the report on disk."""

from datetime import UTC, datetime
from pathlib import Path

from services.trainer.campaign import Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.report.content import CampaignReport, RoundRow


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


def write_campaign_report(store: CampaignStore, name: str, reports_dir: Path, reason: str = "") -> Path:
    """Write everything about a campaign into reports_dir/<name>; gives that folder."""
    # matplotlib takes longer to import than most commands take to run.
    from services.trainer.report.write import write_report

    campaign = store.campaign(name)
    rows = report_rows(store, name)
    trained = [r for r in store.rounds(name) if r.state == "done" and r.round_no > 0]
    report = CampaignReport(
        name=name,
        config=campaign.config.model_dump(mode="json"),
        classes=campaign.classes,
        rows=tuple(rows),
        confusion=trained[-1].report["confusion"] if trained else [],
        created=datetime.fromtimestamp(campaign.created_at, UTC),
        reason=reason or campaign.reason or campaign.state,
        source_id=campaign.source_id,
    )
    folder = reports_dir / name
    write_report(folder, report)
    return folder
