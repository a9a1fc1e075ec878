"""Faster graphs of a version: made, compared with the fp32 one on images that nobody has labelled, published or not."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import structlog

from services.common.errors import QuerentError
from services.common.files import digest
from services.common.manifest import VariantCheck, VariantKind
from services.trainer.learning import FittedModel, Head, LabelledSamples, Watch
from services.trainer.parity import session
from services.trainer.variant_cache import Seen, VariantCache

log = structlog.get_logger()

COMPARED = 2000
MIN_AGREEMENT = 0.995
# On the random slice: labels that a variant may get wrong beyond those that fp32 gets wrong.
MAX_LOST_LABELS = 1
CALIBRATION_IMAGES = 256
_FLOAT16_MAX = 65_504.0
# Part of the name of every kept variant: raise it when a graph is made another way.
_FORMAT = 1
_BATCH = 32
_PHASE = "variants"


@dataclass(frozen=True)
class Variant:
    """`embedding`: the faster embedding graph, to be joined with the head; None when it was refused."""

    check: VariantCheck
    embedding: bytes | None = None


class Variants:
    """Makes and checks the variants that a campaign asks for.

    `pool_ids`: every sample of the source's pool. `images`: sample ids -> uint8 [N, H, W, 3].
    """

    def __init__(
        self,
        kinds: Sequence[VariantKind],
        pool_ids: Sequence[str],
        images: Callable[[Sequence[str]], np.ndarray],
        threads: int = 0,
    ) -> None:
        self._kinds = kinds
        self._pool_ids = pool_ids
        self._images = images
        self._threads = threads

    def of(self, model: FittedModel, labelled: LabelledSamples, watch: Watch) -> dict[VariantKind, Variant]:
        """None for a zero head: it predicts nothing that could be compared."""
        if model.head.kind == "zero":
            return {}
        return {kind: self._variant(kind, model, labelled, watch) for kind in self._kinds}

    def _variant(self, kind: VariantKind, model: FittedModel, labelled: LabelledSamples, watch: Watch) -> Variant:
        try:
            variant = self._made_and_checked(kind, model, labelled, watch)
        except QuerentError:
            raise
        # The converters raise whatever they like for a graph that they do not know; the fp32 one is sound.
        except Exception as error:
            log.exception("variant_not_made", kind=kind)
            variant = Variant(VariantCheck(refused=f"it cannot be made: {type(error).__name__}: {error}"[:300]))
        why = variant.check.refused
        log.info("variant_refused" if why else "variant_passed", kind=kind, why=why, agreement=variant.check.agreement)
        return variant

    def _made_and_checked(
        self, kind: VariantKind, model: FittedModel, labelled: LabelledSamples, watch: Watch
    ) -> Variant:
        calibration = heapq.nlargest(CALIBRATION_IMAGES, self._pool_ids) if kind == "int8" else []
        compared = self._unlabelled(set(labelled.ids) | set(calibration))
        if len(compared) < COMPARED:
            return Variant(VariantCheck(refused=_too_few(len(compared)), images=len(compared)))
        random_rows = np.flatnonzero(labelled.drawn_at_random)
        slice_ids = [labelled.ids[row] for row in random_rows]
        cache = VariantCache(model.embedding_graph.parent)
        fp32 = onnx.load_model_from_string(model.embedding_graph.read_bytes())

        def seen(graph: bytes) -> Seen:
            return cache.seen(graph, [*compared, *slice_ids], lambda ids: self._run(graph, ids, watch))

        variant, checked = self._graphs(kind, fp32, model.embedding_id, cache, calibration, watch)
        truth = seen(_with_largest(fp32))
        checks = [
            compare(
                kind,
                model.head,
                expected=(truth.of(compared), truth.of(slice_ids)),
                found=(other.of(compared), other.of(slice_ids)),
                classes=labelled.classes[random_rows],
                largest=truth.largest,
            )
            for other in map(seen, checked)
        ]
        worst = min(checks, key=lambda check: (not check.refused, check.agreement or 0.0))
        return Variant(worst, None if worst.refused else variant)

    def _unlabelled(self, but: set[str]) -> list[str]:
        """Ids are content hashes: the smallest are a random draw, and mostly those of the round before."""
        return heapq.nsmallest(COMPARED, (i for i in self._pool_ids if i not in but))

    def _graphs(
        self,
        kind: VariantKind,
        fp32: onnx.ModelProto,
        embedding_id: str,
        cache: VariantCache,
        calibration: Sequence[str],
        watch: Watch,
    ) -> tuple[bytes, list[bytes]]:
        """The variant, and the graphs that are compared in its stead."""
        from services.trainer import variant_graphs as graphs  # onnxruntime's tools, which most campaigns do without

        recipe = f"{kind}-{digest([_FORMAT, kind, *calibration])}"

        def make() -> bytes:
            if kind == "fp16":
                return _bytes(graphs.fp16_graph(fp32))
            return _bytes(graphs.int8_graph(fp32, self._batches(calibration, watch)))

        variant = cache.graph(embedding_id, recipe, make)
        return variant, [variant, _bytes(graphs.rounded_to_fp16(fp32))] if kind == "fp16" else [variant]

    def _run(self, graph: bytes, ids: Sequence[str], watch: Watch) -> tuple[np.ndarray, float]:
        """Embeddings float32 (N, D), and the largest value where the graph tells it."""
        network = session(graph, self._threads)
        parts, largest = [], 0.0
        for images in self._batches(ids, watch):
            embeddings, *told = network.run(None, {"image": images})
            parts.append(embeddings)
            largest = max([largest, *(float(value) for value in told)])
        return np.concatenate(parts), largest

    def _batches(self, ids: Sequence[str], watch: Watch) -> Iterator[np.ndarray]:
        for first in range(0, len(ids), _BATCH):
            watch.progress(_PHASE, first, len(ids))
            yield self._images(ids[first : first + _BATCH])


def compare(
    kind: VariantKind,
    head: Head,
    expected: tuple[np.ndarray, np.ndarray],
    found: tuple[np.ndarray, np.ndarray],
    classes: np.ndarray,
    largest: float,
) -> VariantCheck:
    """The three rules, on embeddings by fp32 (`expected`) and by the variant, each (N, D) of unlabelled images and
    (R, D) of the random slice, whose true classes are `classes` (R,)."""
    with np.errstate(all="ignore"):
        before, now = (head.probabilities(embeddings) for embeddings in (expected[0], found[0]))
        right_before, right_now = (
            int((head.probabilities(part[1]).argmax(axis=1) == classes).sum()) if len(classes) else 0
            for part in (expected, found)
        )
    finite = all(np.isfinite(values).all() for values in (*found, now))
    check = VariantCheck(
        images=len(before),
        agreement=float((before.argmax(axis=1) == now.argmax(axis=1)).mean()),
        random_slice=len(classes),
        random_slice_correct=right_now,
        random_slice_correct_fp32=right_before,
        max_probability_error=float(np.abs(before - now).max()) if finite else None,
        largest_activation=largest if np.isfinite(largest) else None,
    )
    return check.model_copy(update={"refused": _why_refused(kind, check, finite)})


def _why_refused(kind: VariantKind, check: VariantCheck, finite: bool) -> str:
    """ "" for a variant that may be published."""
    if not finite:
        return "it gives values that are not finite"
    if kind == "fp16" and (check.largest_activation is None or check.largest_activation > _FLOAT16_MAX):
        return f"float16 ends at {_FLOAT16_MAX:,.0f}, and its layers reach {check.largest_activation or np.inf:,.0f}"
    agreement = check.agreement or 0.0
    if agreement < MIN_AGREEMENT:
        return f"it agrees with fp32 on {agreement:.2%} of {check.images} images; {MIN_AGREEMENT:.1%} are asked"
    lost = check.random_slice_correct_fp32 - check.random_slice_correct
    if lost > MAX_LOST_LABELS:
        return (
            f"of {check.random_slice} randomly drawn labels it gets {check.random_slice_correct} right and fp32 "
            f"{check.random_slice_correct_fp32}; one less is allowed"
        )
    return ""


def _too_few(unlabelled: int) -> str:
    return f"the source has {unlabelled} unlabelled images to compare on; {COMPARED} are asked"


def _with_largest(fp32: onnx.ModelProto) -> bytes:
    from services.trainer.variant_graphs import with_largest

    return _bytes(with_largest(fp32))


def _bytes(graph: onnx.ModelProto) -> bytes:
    """Equal graphs give equal bytes: what was seen of them is found by their hash."""
    return bytes(graph.SerializeToString(deterministic=True))
