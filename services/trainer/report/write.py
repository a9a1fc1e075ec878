"""The report's files: report.html, report.json, the CSV files and the pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

from services.common.files import write_atomically
from services.trainer.report import plots
from services.trainer.report.content import CampaignReport
from services.trainer.report.page import render_page
from services.trainer.report.pictures import Pictures
from services.trainer.report.tables import classes_csv, picks_csv, rounds_csv


def write_report(folder: Path, report: CampaignReport, images: Mapping[str, str] | None = None) -> None:
    """Write or replace every file of the report.

    `images`: sample id -> data URI of a small picture; the gallery says so where one is missing.
    """
    pictures = Pictures.of(plots.drawn(report))
    files = {f"{name}.png": png for name, png in pictures.light.items()}
    files["rounds.csv"] = rounds_csv(report).encode()
    files["classes.csv"] = classes_csv(report).encode()
    files["picks.csv"] = picks_csv(report).encode()
    files["report.json"] = (json.dumps(report.as_json(), indent=1) + "\n").encode()
    # The page comes last: whoever sees it finds the rest beside it.
    files["report.html"] = render_page(report, pictures, images or {}).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
