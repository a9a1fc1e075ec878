"""The model registry: a Triton model repository, with published and promoted versions kept apart.

<root>/<campaign>/config.pbtxt, labels.txt, current, pinned
<root>/<campaign>/<version>/model.onnx, head.onnx, manifest.json, and faster variants of model.onnx

Triton reads model.onnx of a version and ignores every other file beside it.
"""

import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from services.common.errors import Conflict, DamagedArtefact, NotFound, did_you_mean, shown
from services.common.files import fsync_dir, sha256_file, write_atomically
from services.common.manifest import Manifest, TensorSpec, read_manifest

CAMPAIGN_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
LABELS_FILE = "labels.txt"
CONFIG_FILE = "config.pbtxt"
MAX_BATCH_SIZE = 64
_KEEP_NEWEST = 5


def is_campaign_name(name: str) -> bool:
    """Whether `name` may be a folder of the registry. No other string ever becomes a path."""
    return CAMPAIGN_NAME.fullmatch(name) is not None


class Registry:
    """Reads and writes one registry folder. Writers: the trainer only."""

    def __init__(self, root: Path) -> None:
        self.root = root

    # ---- reading -------------------------------------------------------------------------------------

    def campaigns(self) -> list[str]:
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and is_campaign_name(p.name))

    def versions(self, campaign: str) -> list[int]:
        """Published versions, oldest first; none for an unknown campaign."""
        if not is_campaign_name(campaign) or not (self.root / campaign).is_dir():
            return []
        names = (p.name for p in (self.root / campaign).iterdir() if p.is_dir())
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,8}", name))

    def current(self, campaign: str) -> int | None:
        """The promoted version, None while nothing is promoted."""
        if not is_campaign_name(campaign):
            return None
        try:
            text = (self.root / campaign / "current").read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not re.fullmatch(r"[1-9][0-9]{0,8}", text):
            raise DamagedArtefact(f"{self.root / campaign / 'current'} holds {text[:20]!r}, not a version number")
        return int(text)

    def version_dir(self, campaign: str, version: int) -> Path:
        """Raises NotFound, naming what there is."""
        versions = self.versions(campaign)
        if not versions:
            raise NotFound(f"no model {shown(campaign)}; {did_you_mean(campaign, self.campaigns())}")
        if version not in versions:
            raise NotFound(f"no version {version} of {campaign!r}; published: {', '.join(map(str, versions))}")
        return self.root / campaign / str(version)

    def manifest(self, campaign: str, version: int) -> Manifest:
        return read_manifest(self.version_dir(campaign, version))

    def verify(self, campaign: str, version: int) -> Manifest:
        """The manifest, after every file's checksum was compared. Raises DamagedArtefact."""
        folder = self.version_dir(campaign, version)
        manifest = read_manifest(folder)
        for name, expected in manifest.files.items():
            if Path(name).name != name:
                raise DamagedArtefact(f"{folder}: the manifest names {name!r}, which is not a plain file name")
            if not (folder / name).is_file():
                raise DamagedArtefact(f"{folder / name} is missing")
            if sha256_file(folder / name) != expected:
                raise DamagedArtefact(f"{folder / name} does not match its checksum")
        return manifest

    # ---- writing -------------------------------------------------------------------------------------

    def staging_dir(self) -> Path:
        """A new folder on the same file system, outside the root: any other folder inside can stop Triton."""
        folder = self.root.parent / f"{self.root.name}-staging" / uuid.uuid4().hex
        folder.mkdir(parents=True)
        return folder

    def create_campaign(self, campaign: str, classes: Sequence[str]) -> None:
        """The campaign's folder with its Triton configuration; nothing when it is there already.

        Without classes, which a plain model has none of, nothing has labels.
        """
        if not is_campaign_name(campaign):
            raise Conflict(f"{campaign!r} is not a campaign name (a-z, 0-9 and -, at most 63)")
        if (self.root / campaign).exists():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        staged = self.staging_dir()
        if classes:
            (staged / LABELS_FILE).write_text("".join(f"{name}\n" for name in classes))
        (staged / CONFIG_FILE).write_text(triton_config(campaign))
        staged.rename(self.root / campaign)
        fsync_dir(self.root)

    def publish(self, staged: Path, campaign: str, version: int) -> None:
        """Move a complete staged version into place. A version that is there already stays as it is."""
        target = self.root / campaign / str(version)
        if target.exists():
            shutil.rmtree(staged)
            return
        for path in staged.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        fsync_dir(staged)
        staged.rename(target)
        fsync_dir(target.parent)

    def promote(self, campaign: str, version: int) -> None:
        """Make `version` the one that answers. The small file `current` is the truth; Triton's follows.

        Raises Conflict for a version without a trained head, DamagedArtefact for one that is not whole.
        """
        manifest = self.verify(campaign, version)
        if manifest.head == "zero":
            raise Conflict(f"version {version} of {campaign!r} is the backbone alone; it cannot answer")
        write_atomically(self.root / campaign / "current", f"{version}\n".encode())
        write_atomically(self.root / campaign / CONFIG_FILE, triton_config(campaign, manifest).encode())

    def rollback(self, campaign: str) -> int:
        """Promote the newest version before the current one. Raises Conflict when there is none."""
        current = self.current(campaign)
        earlier = [
            v for v in self.versions(campaign) if v < (current or 0) and self.manifest(campaign, v).head != "zero"
        ]
        if not earlier:
            raise Conflict(f"{campaign!r} has no trained version before {current}")
        self.promote(campaign, earlier[-1])
        return earlier[-1]

    def repair(self) -> None:
        """Finish promotions that a crash cut short and drop what was left in staging."""
        for campaign in self.campaigns():
            try:
                current = self.current(campaign)
                wanted = triton_config(campaign, self.manifest(campaign, current) if current else None)
            except (DamagedArtefact, NotFound):
                continue  # for a person to mend with `al-trainer models promote`; the others come first
            config = self.root / campaign / CONFIG_FILE
            if not config.is_file() or config.read_text() != wanted:
                write_atomically(config, wanted.encode())
        staging = self.root.parent / f"{self.root.name}-staging"
        for left in staging.iterdir() if staging.is_dir() else ():
            # Another worker may be staging right now; nothing stages for as long as a day.
            if left.stat().st_mtime < time.time() - 86_400:
                shutil.rmtree(left, ignore_errors=True)

    # ---- pins and pruning ----------------------------------------------------------------------------

    def pinned(self, campaign: str) -> set[int]:
        try:
            return {int(v) for v in (self.root / campaign / "pinned").read_text().split()}
        except FileNotFoundError:
            return set()

    def pin(self, campaign: str, version: int, pinned: bool = True) -> None:
        self.version_dir(campaign, version)
        pins = self.pinned(campaign) | {version} if pinned else self.pinned(campaign) - {version}
        write_atomically(self.root / campaign / "pinned", " ".join(map(str, sorted(pins))).encode())

    def prune(self, campaign: str, keep_newest: int = _KEEP_NEWEST) -> list[int]:
        """Delete versions except current, the newest `keep_newest` and the pinned. Gives what went."""
        versions = self.versions(campaign)
        keep = {self.current(campaign), *versions[-keep_newest:], *self.pinned(campaign)}
        gone = [v for v in versions if v not in keep]
        for version in gone:
            # Out of the root in one step first, so that nobody ever sees half a version.
            doomed = self.staging_dir() / str(version)
            (self.root / campaign / str(version)).rename(doomed)
            shutil.rmtree(doomed.parent)
        return gone

    def delete(self, campaign: str) -> None:
        if is_campaign_name(campaign) and (self.root / campaign).is_dir():
            doomed = self.staging_dir() / campaign
            (self.root / campaign).rename(doomed)
            shutil.rmtree(doomed.parent)


def triton_config(campaign: str, promoted: Manifest | None = None) -> str:
    """What Triton reads: tensors, labels and the one version to serve; no version while none is promoted.

    Triton's onnxruntime backend completes inputs or outputs from the graph only where none is named at all, so that
    naming the labels' file means naming everything. Then it does not switch batching on by itself either.
    """
    lines = [f'name: "{campaign}"', 'platform: "onnxruntime_onnx"', f"max_batch_size: {MAX_BATCH_SIZE}"]
    if promoted is None:
        return "\n".join([*lines, "version_policy { specific { } }", ""])
    signature = promoted.signature
    lines.append(f"input [ {_tensor(signature.input)} ]")
    for output in signature.outputs:
        labelled = output.name == "probabilities" and promoted.plain is None
        lines.append(f"output [ {_tensor(output, LABELS_FILE if labelled else '')} ]")
    lines += ["dynamic_batching { }", f"version_policy {{ specific {{ versions: [ {promoted.version} ] }} }}", ""]
    return "\n".join(lines)


def _tensor(spec: TensorSpec, labels: str = "") -> str:
    # Triton knows no tensor without dimensions beside the batch's.
    shape = f"dims: [ {', '.join(map(str, spec.shape))} ]" if spec.shape else "dims: [ 1 ] reshape { shape: [ ] }"
    label_file = f' label_filename: "{labels}"' if labels else ""
    return f"{{ name: {json.dumps(spec.name)} data_type: TYPE_{spec.datatype} {shape}{label_file} }}"
