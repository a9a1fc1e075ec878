"""Making a source: list the images of a data set, give them ids, check that each can be read."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from services.common import images
from services.common.errors import BadConfig, BadImage, did_you_mean
from services.common.files import digest, sha256_file, write_atomically
from services.common.samples import Source, read_source, sample_id
from services.trainer.config import SourceConfig, SplitConfig
from services.trainer.listing import Listed, ListedImage, fingerprint, list_images

log = structlog.get_logger()

ProgressBar = Callable[[str, int, int], None]


@dataclass(frozen=True)
class _Sample:
    id: str
    image: ListedImage
    split: str

    @property
    def content(self) -> str:
        """The same for exact duplicates."""
        return self.id[:32]


def make_source(config: SourceConfig, data_dir: Path, sources_dir: Path, progress: ProgressBar) -> Source:
    """Write the source's description and index; the same images give the same source.

    Images that cannot be decoded are left out and listed in `<source_id>.skipped.txt`.
    Raises BadConfig when there is nothing to work with or a class is not among the declared ones.
    """
    location = config.location or config.kind
    recipe = _recipe_path(sources_dir, config, fingerprint(data_dir / location))
    known = _known_source(sources_dir, recipe)
    if known:
        return known
    listed = list_images(config, data_dir / location)
    classes = _classes(config, listed)
    samples = _with_ids(listed, progress)
    chosen = _choose(config, samples)
    kept, skipped = _readable(listed, chosen, config.size, progress)
    if not any(s.split == "pool" for s in kept):
        raise BadConfig(f"{data_dir / location}: none of the {len(chosen)} images can be read")
    source = _write(sources_dir, config, location, classes, kept)
    if skipped:
        report = sources_dir / f"{source.source_id}.skipped.txt"
        write_atomically(report, "".join(f"{line}\n" for line in skipped).encode())
        log.warning("images_left_out", count=len(skipped), first=skipped[0], listed_in=str(report))
    write_atomically(recipe, source.source_id.encode())
    return source


def _recipe_path(sources_dir: Path, config: SourceConfig, files: str) -> Path:
    """Names what a source was made from, so that making it again reads no image."""
    return sources_dir / "recipes" / digest({"config": config.model_dump(mode="json"), "files": files})


def _known_source(sources_dir: Path, recipe: Path) -> Source | None:
    if not recipe.is_file():
        return None
    source_id = recipe.read_text()
    index = sources_dir / f"{source_id}.index.parquet"
    if not index.is_file():
        return None
    source = read_source(sources_dir, source_id)
    return source if sha256_file(index) == source.fingerprint else None


def _classes(config: SourceConfig, listed: Listed) -> tuple[str, ...]:
    found = {image.label for image in listed.images if image.label is not None}
    if config.classes is None:
        return listed.classes or tuple(sorted(found))
    unknown = sorted(found - set(config.classes))
    if unknown:
        example = next(i.name for i in listed.images if i.label == unknown[0])
        raise BadConfig(
            f"{example} has the class {unknown[0]!r}, which source.classes does not list; "
            f"{did_you_mean(unknown[0], config.classes)}"
        )
    return config.classes


def _with_ids(listed: Listed, progress: ProgressBar) -> list[_Sample]:
    """Every listed image with its id; exact duplicates get -2, -3, in listing order."""
    seen: dict[str, int] = {}
    samples = []
    for done, image in enumerate(listed.images, start=1):
        base = sample_id(listed.encoded(image))
        seen[base] = seen.get(base, 0) + 1
        unique = base if seen[base] == 1 else f"{base}-{seen[base]}"
        samples.append(_Sample(unique, image, image.split))
        if done % 500 == 0 or done == len(listed.images):
            progress("index", done, len(listed.images))
    return samples


def _choose(config: SourceConfig, samples: Sequence[_Sample]) -> list[_Sample]:
    """The pool and the test samples within their limits, in storage order.

    Ids are content hashes, so taking the smallest is a random draw that any machine repeats.
    """
    pool = [s for s in samples if s.split == "pool"]
    test = [s for s in samples if s.split == "test"]
    if not test:
        contents = sorted({s.content for s in pool})
        held_out = set(contents[: max(1, round(len(contents) * config.test_share))])
        test = [replace(s, split="test") for s in pool if s.content in held_out]
        pool = [s for s in pool if s.content not in held_out]
    test = _limited(test, config.test)
    # An image that is tested on must not be in the pool under another id: it could be bought and trained on.
    tested = {s.content for s in test}
    apart = [s for s in pool if s.content not in tested]
    if len(apart) < len(pool):
        log.warning("test_images_left_out_of_the_pool", count=len(pool) - len(apart))
    return [*_limited(apart, config.pool), *test]


def _limited(samples: Sequence[_Sample], split: SplitConfig) -> list[_Sample]:
    if split.limit is None or split.limit >= len(samples):
        return list(samples)
    kept = {s.id for s in sorted(samples, key=lambda s: s.id)[: split.limit]}
    return [s for s in samples if s.id in kept]


def _readable(
    listed: Listed, samples: Sequence[_Sample], size: int, progress: ProgressBar
) -> tuple[list[_Sample], list[str]]:
    """Those that decode, and a line about each that does not."""

    def problem(sample: _Sample) -> str | None:
        try:
            images.decode(listed.encoded(sample.image), size, size)
        except BadImage as error:
            return f"{sample.image.name}: {error}"
        return None

    kept, skipped = [], []
    with ThreadPoolExecutor(max_workers=4) as threads:
        for done, (sample, trouble) in enumerate(
            zip(samples, threads.map(problem, samples, chunksize=64), strict=True), start=1
        ):
            if trouble is None:
                kept.append(sample)
            else:
                skipped.append(trouble)
            if done % 500 == 0 or done == len(samples):
                progress("check", done, len(samples))
    return kept, skipped


def _write(
    sources_dir: Path, config: SourceConfig, location: str, classes: tuple[str, ...], samples: Iterable[_Sample]
) -> Source:
    samples = list(samples)
    index_of = {name: i for i, name in enumerate(classes)}
    table = pa.table(
        {
            "id": pa.array([s.id for s in samples], pa.string()),
            "split": pa.array([s.split for s in samples], pa.string()),
            "file": pa.array([s.image.file for s in samples], pa.string()),
            "row": pa.array([s.image.row for s in samples], pa.int32()),
            "label": pa.array([index_of.get(s.image.label or "", -1) for s in samples], pa.int32()),
        }
    )
    sources_dir.mkdir(parents=True, exist_ok=True)
    staged = sources_dir / f".index-{digest([s.id for s in samples])}.parquet"
    pq.write_table(table, staged)
    described = {
        "kind": "parquet" if config.kind in ("cifar10", "digits") else config.kind,
        # A manifest lies beside its images; the source is the folder.
        "location": str(Path(location).parent) if config.kind == "manifest" else location,
        "height": config.size,
        "width": config.size,
        "classes": classes,
        "splits": {name: sum(s.split == name for s in samples) for name in ("pool", "test")},
        "fingerprint": sha256_file(staged),
    }
    source = Source(source_id=digest(described), **described)
    staged.replace(sources_dir / f"{source.source_id}.index.parquet")
    # The description comes last: a source without it does not exist yet.
    write_atomically(sources_dir / f"{source.source_id}.json", source.model_dump_json(indent=1).encode())
    return source
