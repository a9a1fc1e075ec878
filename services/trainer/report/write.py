"""The report's files: report.html, rounds.csv, report.json and the pictures."""

import csv
import io
import json
from pathlib import Path

from services.common.files import write_atomically
from services.trainer.report import plots
from services.trainer.report.content import CampaignReport, RoundRow, phases
from services.trainer.report.page import render_page


def write_report(folder: Path, report: CampaignReport) -> None:
    """Write or replace every file of the report."""
    pictures = _pictures(report)
    files = {f"{name}.png": png for name, png in pictures.items()}
    files["rounds.csv"] = rounds_csv(report).encode()
    files["report.json"] = (json.dumps(report.as_json(), indent=1) + "\n").encode()
    # The page comes last: whoever sees it finds the rest beside it.
    files["report.html"] = render_page(report, pictures).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)


def _pictures(report: CampaignReport) -> dict[str, bytes]:
    if not report.rows:
        return {}
    drawn = {
        "learning_curve": plots.learning_curve(report),
        "calibration_and_time": plots.calibration_and_time(report),
    }
    if len(report.confusion):
        drawn["confusion_matrix"] = plots.confusion_matrix(report)
    return drawn


def rounds_csv(report: CampaignReport) -> str:
    """One line a round; every metric, phase and class has its column."""
    lines = [_flat(row) for row in report.rows]
    columns = list(dict.fromkeys(column for line in lines for column in line))
    if not lines:
        columns = ["round", "strategy", "labels", "version", "promoted"]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


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
