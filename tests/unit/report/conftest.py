"""A small finished campaign, as plain values."""

from datetime import UTC, datetime

import pytest

from services.common.manifest import VariantCheck
from services.trainer.report.asked import Asked, AskedRound
from services.trainer.report.content import Bins, CampaignReport, RoundRow, VariantRow

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


def asked_round(round_no: int, count: int = 40) -> AskedRound:
    """The model is wrong about every third; the last tenth was drawn at random; round 1 had no model."""
    samples = []
    for i in range(count):
        answer, other = CLASSES[i % 10], CLASSES[(i + 1) % 10]
        samples.append(
            Asked(
                sample_id=f"{round_no:02d}{i:030d}",
                drawn_at_random=i >= 0.9 * count,
                score=None if round_no == 1 else (i % 7) / 7,
                predicted=None if round_no == 1 else other if i % 3 == 0 else answer,
                confidence=None if round_no == 1 else 0.5,
                answer=answer,
            )
        )
    return AskedRound(round_no, "random" if round_no == 1 else "least_confidence", tuple(samples))


@pytest.fixture
def report() -> CampaignReport:
    return finished_report()


def finished_report() -> CampaignReport:
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
        reliability=Bins(counts=[0, 40, 60], accuracy=[0.0, 0.5, 0.9], confidence=[0.0, 0.55, 0.85], ece=0.05),
        asked=tuple(asked_round(n) for n in range(1, 7)),
        bought={n: dict.fromkeys(CLASSES, 10) for n in range(1, 7)},
        pool_shares=dict.fromkeys(CLASSES, 0.1),
        variants=[
            VariantRow(
                7, "fp16", VariantCheck(images=2000, agreement=0.9985, random_slice=60, random_slice_correct=44)
            ),
            VariantRow(7, "int8", VariantCheck(refused="it agrees with fp32 on 97.00% of 2000 images", images=2000)),
        ],
    )
