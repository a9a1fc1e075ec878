"""From the database to the report on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.common.errors import QuerentError
from services.common.registry import Registry
from services.trainer.asked_images import asked_images
from services.trainer.campaign import Campaign, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.config import CampaignConfig
from services.trainer.evaluation import Reliability
from services.trainer.purchases import asked_rounds, bought_classes, pool_shares
from services.trainer.report.content import Bins, CampaignReport, ForecastCurve, Outlook, RoundRow, VariantRow
from services.trainer.stopping import Slice, fit_curve, forecast, next_marks, slice_cost

# How far beyond the newest round the forecast is drawn, and in how many steps.
_BEYOND = 1.5
_POINTS = 40


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
        selection=tuple(done.report.get("selection", ())),
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
        curve=_forecast_curve(slices, config.budget),
    )


def _forecast_curve(slices: Sequence[Slice], budget: int) -> ForecastCurve | None:
    """From the first round to the budget, or half as many labels again where that is spent."""
    curve = fit_curve(slices)
    if curve is None or curve.flat:
        return None
    end = max(budget, round(_BEYOND * curve.labels))
    labels = [curve.first_labels + (end - curve.first_labels) * i / _POINTS for i in range(_POINTS + 1)]
    intervals = [curve.interval(n) for n in labels]
    return ForecastCurve(
        measured=[(it.labels, it.accuracy) for it in slices],
        labels=labels,
        fit=[curve.at(n) for n in labels],
        low=[low for low, _ in intervals],
        high=[high for _, high in intervals],
    )


@dataclass(frozen=True)
class Folders:
    """Where reports go, and where the images that they show come from."""

    reports: Path
    sources: Path
    data: Path


def write_campaign_report(
    store: CampaignStore, registry: Registry, folders: Folders, name: str, reason: str = ""
) -> Path:
    """Write everything about a campaign into its folder below `folders.reports`; gives that folder."""
    # matplotlib takes longer to import than most commands take to run.
    from services.trainer.report.write import write_report

    campaign = store.campaign(name)
    report = campaign_report(store, registry, folders.sources, campaign, reason)
    images = asked_images(report.asked, folders.sources, folders.data, campaign.source_id)
    folder = folders.reports / name
    write_report(folder, report, images)
    return folder


def campaign_report(
    store: CampaignStore, registry: Registry, sources_dir: Path, campaign: Campaign, reason: str = ""
) -> CampaignReport:
    """What the report says, from what rounds have saved: the same however often it is written."""
    rounds = store.rounds(campaign.name)
    rows = report_rows(store, campaign.name)
    labels = store.labels(campaign.name)
    newest = next((r.report for r in reversed(rounds) if r.state == "done" and r.round_no > 0), {})
    return CampaignReport(
        name=campaign.name,
        config=campaign.config.model_dump(mode="json"),
        classes=campaign.classes,
        rows=tuple(rows),
        confusion=newest.get("confusion", []),
        created=datetime.fromtimestamp(campaign.created_at, UTC),
        reason=reason or campaign.reason or campaign.state,
        source_id=campaign.source_id,
        outlook=outlook_of(campaign.config, rounds) if slices_of(rounds) else None,
        reliability=_bins(newest),
        asked=asked_rounds(store, campaign, labels),
        bought=bought_classes(labels, campaign.classes),
        pool_shares=pool_shares(sources_dir, campaign.source_id, labels, campaign.classes),
        variants=_variants(registry, campaign.name, rows),
    )


def _bins(report: Mapping[str, Any]) -> Bins | None:
    """None for rounds from before bins were kept, and without test samples."""
    if not any(report.get("reliability", {}).get("counts", [])):
        return None
    kept = Reliability.from_json(report["reliability"])
    return Bins(kept.counts.tolist(), kept.accuracy.tolist(), kept.confidence.tolist(), kept.ece)


def _variants(registry: Registry, name: str, rows: Sequence[RoundRow]) -> list[VariantRow]:
    """Of the newest version and of the one that serves."""
    served = max((r.version for r in rows if r.promoted), default=None)
    found = []
    for version in sorted({rows[-1].version, served or rows[-1].version}) if rows else []:
        try:
            checks = registry.manifest(name, version).variants
        except (QuerentError, OSError):
            continue  # pruned, or another machine's registry; `al-trainer models` tells
        found += [VariantRow(version, kind, check) for kind, check in checks.items()]
    return found
