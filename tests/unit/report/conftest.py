"""A small finished campaign, as plain values."""

from datetime import UTC, datetime

import pytest

from services.trainer.report.content import CampaignReport, RoundRow

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def round_row(round_no: int) -> RoundRow:
    accuracy = 0.55 + 0.20 * (1 - 0.6**round_no)
    return RoundRow(
        round_no=round_no,
        strategy="random" if round_no == 1 else "least_confidence",
        labels=100 * round_no,
        version=round_no + 1,
        promoted=round_no != 3,
        metrics={
            "test": {"accuracy": accuracy, "macro_f1": accuracy - 0.0123, "ece": 0.12 / round_no},
            "random_slice": {"accuracy": accuracy - 0.03},
        },
        seconds={"score": 0.5, "label": 0.1, "fit": 1.5 + round_no, "evaluate": 0.4, "publish": 2.0},
        images_scored_per_second=None if round_no == 1 else 21_456.7,
        class_counts={name: 10 * round_no + i for i, name in enumerate(CLASSES)},
    )


@pytest.fixture
def report() -> CampaignReport:
    size = len(CLASSES)
    return CampaignReport(
        name="cifar10-demo-1",
        config={"backbone": {"name": "tf_efficientnet_lite0"}, "strategy": "margin", "c_grid": (0.1, 1.0)},
        classes=CLASSES,
        rows=tuple(round_row(n) for n in range(1, 7)),
        confusion=[[150 if i == j else (7 + i + j) % 12 for j in range(size)] for i in range(size)],
        created=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        reason="the budget of 600 labels is spent",
        source_id="0123456789abcdef",
    )
