"""The report's CSV files: rounds, classes, and every sample that was asked for."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

from services.trainer.report.classes import class_rows
from services.trainer.report.content import CampaignReport, RoundRow, phases

_ROUND = ("round", "strategy", "labels", "version", "promoted")
_CLASS = ("class", "precision", "recall", "f1", "test_samples", "labels", "share_of_labels", "share_of_pool")
_PICK = ("round", "sample_id", "drawn_at_random", "score", "predicted", "confidence", "answer")


def rounds_csv(report: CampaignReport) -> str:
    """One line a round; every metric, phase and class has its column."""
    lines = [_flat(row) for row in report.rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    return _csv(columns or _ROUND, lines)


def _flat(row: RoundRow) -> dict[str, object]:
    flat: dict[str, object] = {
        "round": row.round_no,
        "strategy": row.strategy,
        "labels": row.labels,
        "version": row.version,
        "promoted": int(row.promoted),
    }
    for split, metrics in row.metrics.items():
        flat |= {f"{split}_{metric}": value for metric, value in metrics.items()}
    flat |= {f"seconds_{phase}": row.seconds[phase] for phase in phases([row])}
    flat["images_scored_per_second"] = row.images_scored_per_second
    flat |= {f"labels_of_{name}": count for name, count in row.class_counts.items()}
    return flat


def classes_csv(report: CampaignReport) -> str:
    """One line a class, in the campaign's order; a figure that is not defined is empty."""
    lines = [
        dict(
            zip(
                _CLASS,
                (
                    row.name,
                    *(None if math.isnan(it) else it for it in (row.precision, row.recall, row.f1)),
                    row.support,
                    row.bought,
                    row.share,
                    row.pool_share,
                ),
                strict=True,
            )
        )
        for row in class_rows(report)
    ]
    return _csv(_CLASS, lines)


def picks_csv(report: CampaignReport) -> str:
    """One line a sample, in the order in which they were asked for."""
    lines = [
        {
            "round": asked.round_no,
            "sample_id": it.sample_id,
            "drawn_at_random": int(it.drawn_at_random),
            "score": it.score,
            "predicted": it.predicted,
            "confidence": it.confidence,
            "answer": it.answer,
        }
        for asked in report.asked
        for it in asked.samples
    ]
    return _csv(_PICK, lines)


def _csv(columns: Sequence[str], lines: Sequence[Mapping[str, object]]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()
