"""Feedback: the true class of an earlier prediction. Checked as a whole, journalled durably, counted once."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from services.common.errors import BadRequest, ModelNotReady, NotFound, did_you_mean, shown
from services.common.feedback import Feedback
from services.inference.journal import Journal
from services.inference.metrics import Metrics
from services.inference.prediction_ids import Predicted, parse
from services.inference.store import ModelStore

MAX_ITEMS = 1000
MAX_ANNOTATOR = 128
_REMEMBERED = 50_000


@dataclass(frozen=True)
class Told:
    """One item as it came: the true class by name or by index."""

    prediction_id: str
    truth: str | int
    annotator: str = ""


@dataclass(frozen=True)
class Recorded:
    recorded: int
    # Of those, predictions that were counted before.
    repeats: int


class FeedbackRecorder:
    """All items of a request are kept and counted, or none of them."""

    def __init__(self, store: ModelStore, journal: Journal, metrics: Metrics, remembered: int = _REMEMBERED) -> None:
        self._store = store
        self._journal = journal
        self._metrics = metrics
        self._remembered = remembered
        self._counted: OrderedDict[str, None] = OrderedDict()
        # One thread: it writes one request after the other, and a disk that hangs holds up nothing else.
        self._thread = ThreadPoolExecutor(1, "feedback")

    async def record(self, items: Sequence[Told]) -> Recorded:
        """On the disk when it returns. Raises BadRequest or NotFound naming the item's index, or Unavailable."""
        self.check_count(len(items))
        entries = await self._checked(items)
        # The caller may go away meanwhile; what is written is counted all the same.
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._keep, entries)

    def check_count(self, count: int) -> None:
        """Raises BadRequest for a request of `count` items that is refused whatever they are."""
        if count < 1:
            raise BadRequest("the request has no items; send at least one")
        if count > MAX_ITEMS:
            raise BadRequest(f"the request has {count} items; the limit is {MAX_ITEMS}")

    def close(self) -> None:
        """Afterwards everything that was answered, and nothing else, is in a closed file."""
        self._thread.shutdown(wait=True)
        self._journal.close()

    async def _checked(self, items: Sequence[Told]) -> list[Feedback]:
        received_at = time.time()
        classes: dict[tuple[str, int], tuple[str, ...]] = {}
        entries = []
        for i, item in enumerate(items):
            try:
                predicted = parse(item.prediction_id)
                key = predicted.campaign, predicted.version
                if key not in classes:
                    classes[key] = await self._classes(*key)
                entries.append(_entry(item, predicted, classes[key], received_at))
            except (BadRequest, NotFound) as error:
                raise type(error)(f"item {i}: {error}") from error
        return entries

    async def _classes(self, campaign: str, version: int) -> tuple[str, ...]:
        """The classes that the version chose from, also after it was pruned: a campaign's never change."""
        try:
            return (await self._store.describe(campaign, version)).manifest.classes
        except NotFound:
            try:
                return (await self._store.describe(campaign)).manifest.classes
            except ModelNotReady as error:
                raise NotFound(f"campaign {campaign!r} has no published version left") from error

    def _keep(self, entries: Sequence[Feedback]) -> Recorded:
        self._journal.append(entries)
        new = [entry for entry in entries if self._is_new(entry.prediction_id)]
        for entry in new:
            self._metrics.count_feedback(entry.campaign, entry.version, entry.round, entry.correct)
        return Recorded(len(entries), len(entries) - len(new))

    def _is_new(self, prediction_id: str) -> bool:
        if prediction_id in self._counted:
            self._counted.move_to_end(prediction_id)
            return False
        self._counted[prediction_id] = None
        if len(self._counted) > self._remembered:
            self._counted.popitem(last=False)
        return True


def _entry(item: Told, predicted: Predicted, classes: tuple[str, ...], received_at: float) -> Feedback:
    if len(item.annotator) > MAX_ANNOTATOR:
        raise BadRequest(f"the annotator has {len(item.annotator)} characters; the limit is {MAX_ANNOTATOR}")
    if predicted.class_index >= len(classes):
        raise BadRequest(f"the prediction id names class {predicted.class_index} of {len(classes)}")
    return Feedback(
        prediction_id=item.prediction_id,
        campaign=predicted.campaign,
        version=predicted.version,
        round=predicted.round,
        sample_id=predicted.sample_id,
        predicted=classes[predicted.class_index],
        label=_label(item.truth, classes),
        annotator=item.annotator,
        predicted_at=predicted.predicted_at,
        received_at=received_at,
    )


def _label(truth: str | int, classes: tuple[str, ...]) -> str:
    if isinstance(truth, int):
        if truth >= len(classes):
            raise BadRequest(f"no class {truth}; the model has 0..{len(classes) - 1}")
        return classes[truth]
    if truth not in classes:
        raise BadRequest(f"no class {shown(truth)}; {did_you_mean(truth, classes)}")
    return truth
