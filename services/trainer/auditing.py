"""From a campaign's labels and stored embeddings to the labels that are worth a second look."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.errors import Conflict
from services.common.registry import Registry
from services.trainer.audit import Suspect, audit_labels
from services.trainer.campaign import Campaign, Label
from services.trainer.campaign_store import CampaignStore
from services.trainer.learning import LabelledSamples, Watch
from services.trainer.oracle import NOISE
from services.trainer.pool_scorer import Version

# Sample ids as a version embeds them: float32 (N, D).
Embeddings = Callable[[Version, Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Audit:
    """What was found among the labels of a campaign."""

    suspects: tuple[Suspect, ...]
    # Sample id -> its label, of every labelled sample.
    labels: dict[str, Label]
    # The backbone was trained on these very labels, so that it defends them.
    backbone_knows_labels: bool

    @property
    def flipped(self) -> frozenset[str]:
        """Labels that a simulated oracle got wrong on purpose; empty for every other oracle."""
        return frozenset(i for i, label in self.labels.items() if label.origin == NOISE)


def audit_campaign(
    campaign: Campaign, store: CampaignStore, registry: Registry, embeddings: Embeddings, watch: Watch
) -> Audit:
    """Raises Conflict for a campaign without labels or versions, BadRequest for labels of a single class."""
    labels = store.labels(campaign.name)
    versions = registry.versions(campaign.name)
    if not labels or not versions:
        raise Conflict(f"{campaign.name} has {len(labels)} labels and {len(versions)} versions: nothing to audit yet")
    newest = registry.manifest(campaign.name, versions[-1])
    samples = LabelledSamples(
        ids=tuple(label.sample_id for label in labels),
        classes=np.array([label.class_index for label in labels], np.int64),
        drawn_at_random=np.array([label.drawn_at_random for label in labels], bool),
    )
    config = campaign.config
    rows = embeddings(Version.of(newest, campaign.source_id), samples.ids)
    suspects = audit_labels(
        rows, samples, len(campaign.classes), config.learner.c_grid, config.learner.folds, config.seed, watch
    )
    by_id = {label.sample_id: label for label in labels}
    return Audit(tuple(suspects), by_id, not newest.embedding_shared)
