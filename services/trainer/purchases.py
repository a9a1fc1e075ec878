"""From the database to what was bought: samples asked for, answers by round, and the pool they came from."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from services.trainer.campaign import Campaign, Label, Pick
from services.trainer.campaign_store import CampaignStore
from services.trainer.oracle import NOISE, SIMULATED
from services.trainer.report.asked import Asked, AskedRound


def asked_rounds(store: CampaignStore, campaign: Campaign, labels: Sequence[Label]) -> list[AskedRound]:
    """Every round that asked for something, waiting ones too, oldest first."""
    answers = {label.sample_id: label.class_index for label in labels}
    rounds = []
    for it in store.rounds(campaign.name):
        picks = store.picks(campaign.name, it.round_no)
        if picks:
            samples = tuple(_asked(pick, it.round_no, answers.get(pick.sample_id), campaign.classes) for pick in picks)
            rounds.append(AskedRound(it.round_no, it.strategy, samples))
    return rounds


def _asked(pick: Pick, round_no: int, answer: int | None, classes: Sequence[str]) -> Asked:
    return Asked(
        sample_id=pick.sample_id,
        drawn_at_random=pick.drawn_at_random,
        # Round 1 is scored by a head that knows nothing, if at all.
        score=pick.score if round_no > 1 else None,
        predicted=None if pick.predicted is None else classes[pick.predicted],
        confidence=pick.confidence,
        answer=None if answer is None else classes[answer],
    )


def bought_classes(labels: Sequence[Label], classes: Sequence[str]) -> dict[int, dict[str, int]]:
    """Round -> class -> labels."""
    counts: dict[int, Counter[str]] = {}
    for label in labels:
        counts.setdefault(label.round_no, Counter())[classes[label.class_index]] += 1
    return {round_no: dict(counts[round_no]) for round_no in sorted(counts)}


def pool_shares(sources_dir: Path, source_id: str, labels: Sequence[Label], classes: Sequence[str]) -> dict[str, float]:
    """Class -> share of the whole pool, for the reader of a study; empty where the oracle is not a simulated one.

    Totals are all that leaves this function: nothing learns the class of a single sample that was not bought.
    """
    if not any(label.origin in (SIMULATED, NOISE) for label in labels):
        return {}
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(sources_dir / f"{source_id}.index.parquet", columns=["split", "label"])
    except OSError:
        return {}  # the source's description has been deleted; the report does without
    of_pool = table["label"].to_numpy()[np.asarray(table["split"].to_pylist()) == "pool"]
    if not len(of_pool) or of_pool.min() < 0:
        return {}
    counts = np.bincount(of_pool, minlength=len(classes))
    return {name: float(count / len(of_pool)) for name, count in zip(classes, counts, strict=True)}
