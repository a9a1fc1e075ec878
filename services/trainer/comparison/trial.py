"""One trial of a grid search: a setting, judged by cross-validation inside one randomly drawn labelled set.

The test samples are reported on by a model that is fitted on the whole set, and decide nothing.
"""

import numpy as np

from services.trainer.comparison.cells import Outcome, Validation
from services.trainer.comparison.curve import Study, confusion_of, on_test, point
from services.trainer.comparison.grid import labelled_set
from services.trainer.comparison.meter import Cost, measured
from services.trainer.config import CampaignConfig
from services.trainer.heads import stratified_folds
from services.trainer.learning import LabelledSamples, Learner, Watch

_SMALLEST = 1e-12


def trial(config: CampaignConfig, study: Study, learner: Learner, watch: Watch) -> Outcome:
    """The same configuration gives the same outcome; trials of a seed have the same samples and the same folds."""
    ids = labelled_set(study.pool_ids, config.initial.labels, config.seed)
    labelled = _labelled(ids, study.classes_of(ids), config)
    validation = _cross_validated(config, study, learner, labelled, watch)
    with measured() as fit:
        model = learner.fit(labelled, study.class_count, config.seed, watch)
    evaluation = on_test(model, study, learner, watch)
    return Outcome((point(evaluation, len(labelled), Cost(), fit),), confusion_of(evaluation), validation)


def _cross_validated(
    config: CampaignConfig, study: Study, learner: Learner, labelled: LabelledSamples, watch: Watch
) -> Validation:
    """Every sample is predicted by a model that never saw it; what a learner searches for, it searches in the rest."""
    fold_of = stratified_folds(labelled.ids, labelled.classes, config.learner.folds, config.seed)
    probabilities = np.empty((len(labelled), study.class_count))
    folds = np.unique(fold_of)
    with measured() as cost:
        for fold in folds:
            watch.progress("trial", int(fold), len(folds) + 1)
            here = fold_of == fold
            ids = np.array(labelled.ids, object)
            others = _labelled(tuple(ids[~here]), labelled.classes[~here], config)
            model = learner.fit(others, study.class_count, config.seed, watch)
            probabilities[here] = learner.probabilities(model, tuple(ids[here]), watch)
    right = probabilities.argmax(axis=1) == labelled.classes
    of_truth = probabilities[np.arange(len(labelled)), labelled.classes]
    loss = -np.log(np.clip(of_truth, _SMALLEST, None)).mean()
    return Validation(float(right.mean()), float(loss), cost.cpu_seconds)


def _labelled(ids: tuple[str, ...], classes: np.ndarray, config: CampaignConfig) -> LabelledSamples:
    """All drawn at random. A trained network is not told so: it would be trained again for each fold of a temperature,
    which decides nothing here.
    """
    told = config.learner.mode == "head"
    return LabelledSamples(ids, classes, np.full(len(ids), told))
