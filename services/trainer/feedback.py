"""Feedback becomes labels: which answers of the journals a campaign can use, and why not the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.common.errors import NotFound
from services.common.feedback import Feedback, journals, read_journal
from services.common.samples import SampleStore
from services.trainer.campaign import Campaign, Standing
from services.trainer.label_imports import LabelImports
from services.trainer.oracle import Answer

ORIGIN = "feedback"

AGREED = "the same answer again, about an image of this import"
KNOWN = "labelled already, with this class"
CONFLICT = "labelled already, with another class: the label stays"
DISAGREE = "answers about one image that disagree: none is taken"
ASKED = "asked for by a round already: its own label is on the way"
TEST = "a test sample: never trained on"
NOT_IN_SOURCE = "an image that is not in the campaign's source"
NO_SAMPLE = "predicted from raw pixels: no image to label"
NO_CLASS = "not one of the campaign's classes"
OTHER_CAMPAIGN = "about another campaign"
OVER_BUDGET = "beyond the budget"

# In the order in which they are worth reading.
REASONS = (
    OVER_BUDGET, CONFLICT, DISAGREE, NOT_IN_SOURCE, NO_SAMPLE, TEST, ASKED, NO_CLASS, OTHER_CAMPAIGN, KNOWN, AGREED,
)  # fmt: skip


@dataclass(frozen=True)
class LeftOut:
    feedback: Feedback
    # One of REASONS.
    why: str
    # The class that the campaign has for the image, where that is the reason.
    labelled_as: str = ""


@dataclass(frozen=True)
class DamagedLine:
    journal: Path
    line: int
    why: str


@dataclass(frozen=True)
class Told:
    """What the journals say, in their order."""

    journals: tuple[Path, ...]
    feedback: tuple[Feedback, ...]
    damaged: tuple[DamagedLine, ...]


@dataclass(frozen=True)
class Verdict:
    """Each answer of the journals is in one of the two."""

    taken: tuple[Answer, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Held:
    """The samples of a source that are one and the same image: exact duplicates have ids of their own."""

    pool: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)


def read_feedback(paths: Sequence[Path]) -> Told:
    """Journals and folders of them. Raises NotFound when there are none."""
    damaged: list[DamagedLine] = []
    found = journals(paths)
    if not found:
        raise NotFound(f"no journals in {', '.join(map(str, paths))}; give the INFERENCE_FEEDBACK_DIR of a replica")

    def skipped(journal: Path, line: int, why: str) -> None:
        damaged.append(DamagedLine(journal, line, why))

    feedback = [entry for path in found for entry in read_journal(path, skipped)]
    return Told(tuple(found), tuple(feedback), tuple(damaged))


def held_by(samples: SampleStore, feedback: Iterable[Feedback]) -> dict[str, Held]:
    """Image, as predictions name it -> the samples that are this image; without those that the source has not."""
    wanted = {entry.sample_id for entry in feedback}
    held: dict[str, Held] = {}
    for split in ("pool", "test"):
        for sample in samples.ids(split):
            image = sample.partition("-")[0]
            if image in wanted:
                getattr(held.setdefault(image, Held()), split).append(sample)
    return held


def import_feedback(
    campaign: Campaign, told: Told, samples: SampleStore, imports: LabelImports, dry_run: bool = False
) -> tuple[Verdict, Standing]:
    """Add what the campaign can use to its labels; `dry_run`: only say what that is. Raises Conflict or NotFound."""
    held = held_by(samples, told.feedback)
    verdict = Verdict()

    def choose(standing: Standing) -> Sequence[Answer]:
        nonlocal verdict
        verdict = judge(campaign, told.feedback, held, standing)
        return verdict.taken

    standing = imports.look(campaign, choose) if dry_run else imports.add(campaign, choose)
    return verdict, standing


def judge(campaign: Campaign, feedback: Iterable[Feedback], held: Mapping[str, Held], standing: Standing) -> Verdict:
    """Journal order decides who is first where the budget does not last."""
    taken: list[Answer] = []
    left_out: list[LeftOut] = []
    images: dict[str, list[Feedback]] = {}
    for entry in feedback:
        why = _unusable(campaign, entry, held)
        if why:
            left_out.append(LeftOut(entry, why))
        else:
            images.setdefault(entry.sample_id, []).append(entry)
    for image, entries in images.items():
        samples = held[image].pool
        known = {campaign.classes[standing.labelled[s]] for s in samples if s in standing.labelled}
        if known:
            left_out += [_known(entry, known) for entry in entries]
        elif not standing.asked.isdisjoint(samples):
            left_out += [LeftOut(entry, ASKED) for entry in entries]
        elif len({entry.label for entry in entries}) > 1:
            left_out += [LeftOut(entry, DISAGREE) for entry in entries]
        elif len(taken) >= standing.room:
            left_out += [LeftOut(entry, OVER_BUDGET) for entry in entries]
        else:
            first, *again = entries
            taken.append(Answer(samples[0], campaign.classes.index(first.label), first.annotator, ORIGIN))
            left_out += [LeftOut(entry, AGREED) for entry in again]
    return Verdict(tuple(taken), tuple(left_out))


def _unusable(campaign: Campaign, entry: Feedback, held: Mapping[str, Held]) -> str:
    """Why, whatever else is told of the image; empty for an answer that may be used."""
    if entry.campaign != campaign.name:
        return OTHER_CAMPAIGN
    if entry.label not in campaign.classes:
        return NO_CLASS
    if not entry.sample_id:
        return NO_SAMPLE
    if entry.sample_id not in held:
        return NOT_IN_SOURCE
    # A duplicate in the pool does not help: training on it would be training on a test image.
    return TEST if held[entry.sample_id].test else ""


def _known(entry: Feedback, known: set[str]) -> LeftOut:
    return LeftOut(entry, KNOWN) if entry.label in known else LeftOut(entry, CONFLICT, " or ".join(sorted(known)))
