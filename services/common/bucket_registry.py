"""A registry whose truth is a bucket, with a local folder that it is pulled into.

Object stores have no renames and no atomic folders, so the order of writing says what is whole: a manifest is
written last of its files, `current` last of all; a reader takes a version only with its manifest, compares checksums,
and moves it into its folder in one step. Triton can read the bucket as it can read the folder.
"""

import posixpath
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from services.common.errors import BadConfig, DamagedArtefact, Unavailable
from services.common.files import sha256_file, write_atomically
from services.common.manifest import MANIFEST_FILE, read_manifest
from services.common.registry import CONFIG_FILE, LABELS_FILE, Registry, is_campaign_name

log = structlog.get_logger()

# Written in this order, read in this order: `current` must not come before what it names.
_SMALL_FILES = (LABELS_FILE, CONFIG_FILE, "pinned", "current")
_FRESH_SECONDS = 1.0
# Even for somebody who asks for what is not there: requests must not become a listing each.
_AT_LEAST_SECONDS = 0.2
# Until a bucket that did not answer is asked again.
_AGAIN_SECONDS = 5.0

Key = tuple[str, int]


class BucketUnavailable(Unavailable, OSError):
    """The bucket does not answer. What was pulled before can still be read from the folder."""


def open_registry(root: Path, bucket: str) -> Registry:
    """The registry in `root`; with a bucket (s3://models/querent) `root` is a copy of that. Raises BadConfig."""
    return BucketRegistry(root, bucket) if bucket else Registry(root)


class BucketRegistry(Registry):
    """Reading looks at the bucket first, at most once a second. Thread-safe; one process a folder."""

    def __init__(self, root: Path, url: str, fresh_seconds: float = _FRESH_SECONDS) -> None:
        super().__init__(root)
        # An empty copy is no registry that is gone.
        root.mkdir(parents=True, exist_ok=True)
        self._url = url
        self._files, self._base = _open(url)
        self._fresh_seconds = fresh_seconds
        self._lock = threading.RLock()
        self._pulled_at = float("-inf")
        self._listed_at = float("-inf")
        # Object -> what it looked like when it was fetched last.
        self._fetched: dict[str, str] = {}

    # ---- reading -------------------------------------------------------------------------------------

    def campaigns(self) -> list[str]:
        self.pull()
        return super().campaigns()

    def versions(self, campaign: str) -> list[int]:
        self.pull()
        return super().versions(campaign)

    def current(self, campaign: str) -> int | None:
        self.pull()
        return super().current(campaign)

    def version_dir(self, campaign: str, version: int) -> Path:
        if not (self.root / campaign / str(version)).is_dir() and is_campaign_name(campaign):
            self.pull(now=True)  # somebody who asks for it may have published it this moment
        return super().version_dir(campaign, version)

    def pull(self, now: bool = False) -> None:
        """Make the folder what the bucket is. Raises BucketUnavailable while nothing was pulled yet.

        `now`: as it is when this is called, which may take a fifth of a second longer.
        """
        called_at = time.monotonic()
        with self._lock:
            wait = min(_AT_LEAST_SECONDS, self._fresh_seconds) if now else self._fresh_seconds
            early = self._pulled_at + wait - time.monotonic()
            if early > 0:
                # Another caller may have looked meanwhile; after a failure nobody waits.
                if not now or self._listed_at >= called_at or early > wait:
                    return
                time.sleep(early)
            self._listed_at = time.monotonic()
            try:
                with self._reaching():
                    listed = self._files.find(self._base, detail=True)
                    marks = {posixpath.relpath(path, self._base): _mark(info) for path, info in listed.items()}
                    self._pull(marks)
                self._pulled_at = time.monotonic()
            except BucketUnavailable as error:
                if self._pulled_at == float("-inf"):
                    raise
                log.warning("bucket_unavailable", error=str(error), consequence="what was pulled before is used")
                self._pulled_at = time.monotonic() + _AGAIN_SECONDS

    def _pull(self, marks: dict[str, str]) -> None:
        names = {path.split("/")[0] for path in marks if "/" in path}
        for campaign in sorted(filter(is_campaign_name, names)):
            remote = {path for path in marks if path.startswith(f"{campaign}/")}
            for version in _whole_versions(remote):
                self._pull_version((campaign, version), marks)
            for name in _SMALL_FILES:
                self._pull_small(f"{campaign}/{name}", marks)
            for version in set(super().versions(campaign)) - set(_whole_versions(remote)):
                self._drop(self.root / campaign / str(version))
        for campaign in set(super().campaigns()) - names:
            self._drop(self.root / campaign)

    def _pull_version(self, key: Key, marks: dict[str, str]) -> None:
        campaign, version = key
        target, manifest = self.root / campaign / str(version), f"{campaign}/{version}/{MANIFEST_FILE}"
        if target.is_dir() and self._fetched.get(manifest) == marks[manifest]:
            return
        content = self._files.cat_file(self._at(manifest))
        if not target.is_dir() or (target / MANIFEST_FILE).read_bytes() != content:
            staging = self.staging_dir()
            # A manifest says where it lies, so that is where its checksums are compared.
            staged = staging / campaign / str(version)
            staged.mkdir(parents=True)
            try:
                (staged / MANIFEST_FILE).write_bytes(content)
                for path in (p for p in marks if p.startswith(f"{campaign}/{version}/") and p != manifest):
                    self._files.get_file(self._at(path), str(staged / posixpath.basename(path)))
                _check(staged)
                if target.is_dir():
                    self._drop(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                super().publish(staged, campaign, version)
            except DamagedArtefact as error:
                # Half overwritten, or damaged: not taken, and looked at again.
                log.warning("version_not_pulled", model=campaign, version=version, error=str(error))
                return
            finally:
                shutil.rmtree(staging)
        self._fetched[manifest] = marks[manifest]

    def _pull_small(self, path: str, marks: dict[str, str]) -> None:
        local = self.root / path
        if path not in marks:
            local.unlink(missing_ok=True)
            self._fetched.pop(path, None)
        elif self._fetched.get(path) != marks[path] or not local.is_file():
            content = self._files.cat_file(self._at(path))
            if not local.is_file() or local.read_bytes() != content:
                write_atomically(local, content)
            self._fetched[path] = marks[path]

    def _drop(self, folder: Path) -> None:
        """Out of the root in one step first."""
        doomed = self.staging_dir() / folder.name
        folder.rename(doomed)
        shutil.rmtree(doomed.parent)

    # ---- writing: the bucket first, where it is the bucket that says so -----------------------------------

    def create_campaign(self, campaign: str, classes: Sequence[str]) -> None:
        self._writing(lambda: super(BucketRegistry, self).create_campaign(campaign, classes), campaign)

    def publish(self, staged: Path, campaign: str, version: int) -> None:
        with self._lock, self._reaching():
            if version not in self.versions(campaign):
                rest = sorted(path for path in staged.iterdir() if path.name != MANIFEST_FILE)
                for path in (*rest, staged / MANIFEST_FILE):
                    self._files.put_file(str(path), self._at(f"{campaign}/{version}/{path.name}"))
            super().publish(staged, campaign, version)

    def promote(self, campaign: str, version: int) -> None:
        self._writing(lambda: super(BucketRegistry, self).promote(campaign, version), campaign)

    def pin(self, campaign: str, version: int, pinned: bool = True) -> None:
        self._writing(lambda: super(BucketRegistry, self).pin(campaign, version, pinned), campaign)

    def repair(self) -> None:
        with self._lock:
            super().repair()
            for campaign in super().campaigns():
                self._push_small(campaign)

    def prune(self, campaign: str, keep_newest: int = 5) -> list[int]:
        with self._lock, self._reaching():
            gone = super().prune(campaign, keep_newest)
            for version in gone:
                self._remove(f"{campaign}/{version}/")
            return gone

    def delete(self, campaign: str) -> None:
        with self._lock, self._reaching():
            if is_campaign_name(campaign):
                self._remove(f"{campaign}/")
            super().delete(campaign)

    def _writing(self, change: Callable[[], None], campaign: str) -> None:
        with self._lock:
            change()
            self._push_small(campaign)

    def _push_small(self, campaign: str) -> None:
        with self._reaching():
            for name in _SMALL_FILES:
                local, remote = self.root / campaign / name, self._at(f"{campaign}/{name}")
                if not local.is_file():
                    continue
                content = local.read_bytes()
                if not self._files.exists(remote) or self._files.cat_file(remote) != content:
                    self._files.pipe_file(remote, content)
                    self._fetched.pop(f"{campaign}/{name}", None)

    def _remove(self, prefix: str) -> None:
        """What others go by first: `current`, then manifests."""
        first = {"current": 0, MANIFEST_FILE: 1}
        found = self._files.find(self._at(prefix))
        for path in sorted(found, key=lambda it: (first.get(posixpath.basename(it), 2), it)):
            self._files.rm_file(path)

    # ---- the bucket ------------------------------------------------------------------------------------

    def _at(self, path: str) -> str:
        return f"{self._base}/{path}"

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (Unavailable, DamagedArtefact):
            raise
        # botocore raises classes of its own for what does not answer, and s3fs OSErrors for what it refuses.
        except Exception as error:
            raise BucketUnavailable(f"{self._url} cannot be used now: {error or type(error).__name__}") from error


def _open(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        # Listings of others' writes must be seen.
        files, base = url_to_fs(url, skip_instance_cache=True, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise BadConfig(f"{url!r} is no registry: {error}; for s3://bucket/prefix install the extra `s3`") from error
    return files, base.rstrip("/")


def _whole_versions(paths: set[str]) -> list[int]:
    """Versions whose manifest is there."""
    parts = [path.split("/") for path in paths]
    return sorted(int(p[1]) for p in parts if len(p) == 3 and p[2] == MANIFEST_FILE and p[1].isdecimal())


def _mark(info: dict[str, Any]) -> str:
    """Changes whenever the object is written."""
    when = info.get("LastModified") or info.get("mtime") or info.get("created")
    return f"{info.get('ETag')} {info.get('size')} {when}"


def _check(folder: Path) -> None:
    """Raises DamagedArtefact unless every file that the manifest names is there as it was published."""
    for name, expected in read_manifest(folder).files.items():
        if not (folder / name).is_file() or sha256_file(folder / name) != expected:
            raise DamagedArtefact(f"{name} is missing or does not match its checksum")
