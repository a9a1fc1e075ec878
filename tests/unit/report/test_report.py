"""The report says what the rounds were, in every form it is written in."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from services.common.manifest import VariantCheck
from services.trainer.report.asked import Asked, AskedRound
from services.trainer.report.classes import class_shares
from services.trainer.report.content import CampaignReport, ForecastCurve, Outlook, VariantRow
from services.trainer.report.page import render_page
from services.trainer.report.pictures import Pictures
from services.trainer.report.plots.bought import bought_by_round
from services.trainer.report.plots.canvas import LIGHT, as_label
from services.trainer.report.plots.confusion import confusion_shares
from services.trainer.report.plots.learning import learning_curve
from services.trainer.report.table import rounds_table
from services.trainer.report.tables import classes_csv, picks_csv, rounds_csv
from services.trainer.report.write import write_report
from tests.unit.report.conftest import finished_report

PICTURES = {
    "learning_curve.png",
    "bought_classes.png",
    "confusion_matrix.png",
    "confusion_counts.png",
    "reliability.png",
    "calibration.png",
    "timing.png",
    "scoring_rate.png",
}
TABLES = {"rounds.csv", "classes.csv", "picks.csv"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports") / "cifar10-demo-1"
    write_report(folder, finished_report())
    return folder


def page_of(report: CampaignReport, images: Mapping[str, str] | None = None) -> str:
    """The page alone: drawing takes most of a report's time."""
    return render_page(report, Pictures({}, {}), images or {})


def as_text(report: CampaignReport, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(rounds_table(report.rows))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_every_file_is_written(written: Path) -> None:
    assert {p.name for p in written.iterdir()} == {"report.html", "report.json", *TABLES, *PICTURES}


def test_the_pictures_show_something(written: Path) -> None:
    for name in PICTURES:
        with Image.open(written / name) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert pixels.shape[0] > 400
        assert pixels.std() > 5


def test_the_page_needs_no_other_file(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert page.count('src="data:image/png;base64,') == len(PICTURES)
    assert page.count('srcset="data:image/png;base64,') == len(PICTURES)  # and each for dark pages
    for outside in ("http://", "https://", "<script", "<link"):
        assert outside not in page


def test_the_page_contains_the_numbers(report: CampaignReport) -> None:
    page = page_of(report)
    for text in ("74.1%", "72.8%", "21,457", "least confidence", "the budget of 600 labels is spent", "automobile"):
        assert text in page
    assert "$" not in page


def test_the_page_escapes_what_comes_from_outside(report: CampaignReport) -> None:
    hostile = "<script>alert(1)</script>"
    row = replace(report.rows[-1], class_counts={hostile: 3}, strategy=hostile, selection=[hostile])
    asked = Asked(hostile, False, 0.5, predicted=hostile, confidence=0.5, answer=hostile)
    written = replace(
        report,
        classes=(hostile, *report.classes[1:]),
        rows=(row,),
        reason=hostile,
        config={"name": hostile},
        asked=[AskedRound(1, hostile, [asked])],
        bought={1: {hostile: 3}},
        variants=[VariantRow(2, hostile, VariantCheck(refused=hostile))],
    )
    assert "<script" not in page_of(written, {hostile: '"><script>'})


def test_the_json_says_everything(report: CampaignReport) -> None:
    said = json.loads(json.dumps(report.as_json()))
    assert said["source_id"] == report.source_id
    assert said["rows"][2]["metrics"]["test"]["ece"] == report.rows[2].metrics["test"]["ece"]
    assert said["confusion"] == [list(row) for row in report.confusion]
    assert said["asked"][-1] == {
        "round_no": 6,
        "strategy": "least_confidence",
        "asked": 40,
        "answered": 40,
        "judged": 40,
        "wrong": 14,
    }
    assert said["variants"][0]["agreement"] == 0.9985
    assert said["reliability"]["counts"] == [0, 40, 60]


def test_the_csv_has_one_line_a_round(report: CampaignReport) -> None:
    lines = list(csv.DictReader(io.StringIO(rounds_csv(report))))
    assert [line["round"] for line in lines] == ["1", "2", "3", "4", "5", "6"]
    assert lines[5]["labels"] == "600"
    assert float(lines[5]["test_accuracy"]) == report.rows[5].metrics["test"]["accuracy"]
    assert float(lines[5]["seconds_fit"]) == 7.5
    assert lines[0]["images_scored_per_second"] == ""


def test_a_campaign_without_rounds_has_a_report_too(tmp_path: Path, report: CampaignReport) -> None:
    write_report(tmp_path, replace(report, rows=(), confusion=[], reliability=None, asked=(), bought={}, variants=()))
    assert "Nothing measured yet" in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "learning_curve.png").exists()


def test_a_hundred_classes_still_make_a_picture(tmp_path: Path, report: CampaignReport) -> None:
    names = tuple(f"class {i}" for i in range(100))
    confusion = np.eye(100, dtype=int)
    confusion[3, 97] = 9
    write_report(tmp_path, replace(report, classes=names, confusion=confusion.tolist(), pool_shares={}, bought={}))
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 1000
    page = (tmp_path / "report.html").read_text()
    # The matrix has numbers for names: the tables say whose they are, the worst first and most of them folded away.
    assert page.index("class 3<") < page.index("80 classes with a higher F1") < page.index("class 50<")
    assert '<td class="text">class 3</td><td class="text">class 97</td><td>9</td><td>90.0%</td>' in page


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


def test_the_page_says_how_many_more_labels_and_what_the_random_slice_costs(report: CampaignReport) -> None:
    forecasts = {"75%": "about 420 more labels (95% interval: 180 to 1,900)"}
    outlook = Outlook("140 of 500 labels were drawn at random", forecasts, {"kappa": "0.9 <so far>"}, 0.0123)
    asked = replace(report, outlook=outlook)
    page = page_of(asked)
    for text in ("about 420 more labels", "140 of 500 labels", "+1.2 points", "0.9 &lt;so far&gt;", "kappa"):
        assert text in page
    assert asked.as_json()["outlook"]["forecasts"] == forecasts


def test_a_campaign_without_randomly_drawn_labels_has_no_outlook(report: CampaignReport) -> None:
    assert "How many more labels" not in page_of(report)


def test_the_forecast_is_drawn_where_there_is_one(report: CampaignReport) -> None:
    curve = ForecastCurve([(100, 0.5), (600, 0.7)], [100, 900], [0.5, 0.75], [0.4, 0.6], [0.6, 0.9])
    drawn = [learning_curve(replace(report, outlook=Outlook("", {}, curve=it)), LIGHT) for it in (None, curve)]
    assert drawn[0] != drawn[1]


def test_the_gallery_shows_what_was_asked_and_marks_what_was_wrong(report: CampaignReport) -> None:
    last = report.asked[-1]
    shown = last.samples[6]  # the highest score, and a wrong prediction
    page = page_of(report, {shown.sample_id: "data:image/png;base64,AAAA"})
    assert "40 images asked for; the model was wrong about 14 of 40; the 24 highest scores shown" in page
    assert "40 images asked for; no model yet; the 24 first shown" in page
    card = page[page.index(f': {shown.sample_id}"') :]
    card = card[: card.index('<div class="one')]
    assert 'src="data:image/png;base64,AAAA"' in card
    for text in ("horse", "50%", "✗ frog", "score 0.8571"):
        assert text in card
    # All other pictures are missing, and the page says so instead of failing.
    assert page.count("image cannot be read") == 6 * 24 - 1


def test_a_round_that_waits_for_people_shows_what_it_waits_for(report: CampaignReport) -> None:
    waiting = replace(report.asked[-1], samples=[replace(it, answer=None) for it in report.asked[-1].samples])
    page = page_of(replace(report, asked=[waiting]))
    assert "40 images asked for; 40 wait for an answer" in page
    assert "not answered" in page


def test_a_campaign_from_before_bins_and_predictions_were_kept_has_a_report(
    tmp_path: Path, report: CampaignReport
) -> None:
    samples = [replace(it, predicted=None, confidence=None) for it in report.asked[-1].samples]
    old = replace(report, reliability=None, asked=[replace(report.asked[-1], samples=samples)], variants=())
    write_report(tmp_path, old)
    page = (tmp_path / "report.html").read_text()
    assert "evaluated before bins were kept" in page
    assert "no prediction" in page
    assert not (tmp_path / "reliability.png").exists()


def test_variants_are_told_with_their_agreement_or_why_they_were_refused(report: CampaignReport) -> None:
    page = page_of(report)
    for text in ("99.85% of 2,000 images", "44 of 60", "it agrees with fp32 on 97.00%"):
        assert text in page


def test_what_the_strategy_said_about_its_batch_is_told(report: CampaignReport) -> None:
    told = "typiclust: the median class has 9 of 100 labels, fewer than 30"
    rows = [*report.rows[:-1], replace(report.rows[-1], selection=[told])]
    assert told in page_of(replace(report, rows=rows))


def test_the_csv_files_hold_every_class_and_every_pick(report: CampaignReport) -> None:
    classes = list(csv.DictReader(io.StringIO(classes_csv(report))))
    assert [line["class"] for line in classes] == list(report.classes)
    assert classes[0]["labels"] == "60"
    assert float(classes[0]["share_of_pool"]) == 0.1
    picks = list(csv.DictReader(io.StringIO(picks_csv(report))))
    assert len(picks) == 6 * 40
    assert (picks[0]["score"], picks[0]["predicted"], picks[-1]["answer"]) == ("", "", "truck")


@pytest.mark.filterwarnings("error")
def test_names_that_matplotlib_would_take_for_something_else_are_drawn(report: CampaignReport) -> None:
    names = (r"$\frac$", "_hidden", "a very long name indeed", *report.classes[3:])
    bought = {1: dict.fromkeys(names, 10)}
    odd = replace(report, classes=names, bought=bought, pool_shares={})
    shares = class_shares(odd)
    assert shares is not None
    assert bought_by_round(shares, LIGHT)
    assert confusion_shares(np.array(odd.confusion), odd.classes, LIGHT)
    assert [as_label(name) for name in names[:3]] == [r"\$\frac\$", " _hidden", "a very long name …"]
