"""The report says what the rounds were, in every form it is written in."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from services.trainer.report.content import CampaignReport, Outlook
from services.trainer.report.table import rounds_table
from services.trainer.report.write import rounds_csv, write_report

PICTURES = ("learning_curve.png", "confusion_matrix.png", "calibration_and_time.png")


def as_text(report: CampaignReport, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(rounds_table(report.rows))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_every_file_is_written(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path / "cifar10-demo-1", report)
    written = {p.name for p in (tmp_path / "cifar10-demo-1").iterdir()}
    assert written == {"report.html", "rounds.csv", "report.json", *PICTURES}


def test_the_pictures_show_something(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, report)
    for name in PICTURES:
        with Image.open(tmp_path / name) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape[0] > 400
        assert pixels.std() > 5


def test_the_page_needs_no_other_file(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    for outside in ("http://", "https://", "<script", "<link"):
        assert outside not in page


def test_the_page_contains_the_numbers(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    for text in ("74.1%", "72.8%", "21,457", "least confidence", "the budget of 600 labels is spent", "automobile"):
        assert text in page
    assert "$" not in page


def test_the_page_escapes_what_comes_from_outside(tmp_path: Path, report: CampaignReport) -> None:
    hostile = "<script>alert(1)</script>"
    row = replace(report.rows[-1], class_counts={hostile: 3})
    write_report(tmp_path, replace(report, rows=(row,), reason=hostile, config={"name": hostile}))
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_the_json_says_everything(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, report)
    said = json.loads((tmp_path / "report.json").read_text())
    assert said["source_id"] == report.source_id
    assert said["rows"][2]["metrics"]["test"]["ece"] == report.rows[2].metrics["test"]["ece"]
    assert said["confusion"] == [list(row) for row in report.confusion]


def test_the_csv_has_one_line_a_round(report: CampaignReport) -> None:
    lines = list(csv.DictReader(io.StringIO(rounds_csv(report))))
    assert [line["round"] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert lines[5]["labels"] == "600"
    assert float(lines[5]["test_accuracy"]) == report.rows[5].metrics["test"]["accuracy"]
    assert float(lines[5]["seconds_fit"]) == 7.5
    assert lines[0]["images_scored_per_second"] == ""


def test_a_campaign_without_rounds_has_a_report_too(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, replace(report, rows=(), confusion=[]))
    assert "Nothing measured yet" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "learning_curve.png").exists()


def test_a_hundred_classes_still_make_a_picture(tmp_path: Path, report: CampaignReport) -> None:
    names = tuple(f"class {i}" for i in range(100))
    write_report(tmp_path, replace(report, classes=names, confusion=np.eye(100, dtype=int).tolist()))
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 1000


def test_the_table_fits_a_terminal_of_80_columns(report: CampaignReport) -> None:
    table = as_text(report, width=80)
    assert "…" not in table
    for text in ("600", "74.1%", "72.8%", "0.020", "7.5", "10.5", "21,457", "v7*", "v4 "):
        assert text in table


def test_phases_that_get_no_column_are_in_the_rest(report: CampaignReport) -> None:
    table = as_text(report, width=80)
    assert "rest = label, evaluate" in table


def test_a_round_without_metrics_leaves_its_cells_empty(report: CampaignReport) -> None:
    bare = replace(report, rows=(replace(report.rows[0], metrics={}, images_scored_per_second=None),))
    assert "None" not in as_text(bare, width=80)


def test_the_page_says_how_many_more_labels_and_what_the_random_slice_costs(
    tmp_path: Path, report: CampaignReport
) -> None:
    forecasts = {"75%": "about 420 more labels (95% interval: 180 to 1,900)"}
    outlook = Outlook("140 of 500 labels were drawn at random", forecasts, {"kappa": "0.9 <so far>"}, 0.0123)
    write_report(tmp_path, replace(report, outlook=outlook))
    page = (tmp_path / "report.html").read_text()
    for text in ("about 420 more labels", "140 of 500 labels", "+1.2 points", "0.9 &lt;so far&gt;", "kappa"):
        assert text in page
    assert json.loads((tmp_path / "report.json").read_text())["outlook"]["forecasts"] == forecasts


def test_a_campaign_without_randomly_drawn_labels_has_no_outlook(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, report)
    assert "How many more labels" not in (tmp_path / "report.html").read_text()
