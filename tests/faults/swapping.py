"""Versions to swap between, promotions in a row, and what must be true of the answers meanwhile."""

import io
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from PIL import Image

from services.client.client import QuerentClient
from services.common.files import sha256_file, write_atomically
from services.common.manifest import HEAD_FILE, MANIFEST_FILE, MODEL_FILE, read_manifest
from services.common.registry import Registry
from tests.faults.callers import FAILED, Answers
from tests.tiny_models import Folders, RunningInference, TinyModel, next_version, publish, running_inference


@dataclass(frozen=True)
class Versions:
    """Published versions of one campaign that differ in their heads; the first is promoted."""

    folders: Folders
    campaign: str
    numbers: Sequence[int]

    def promote(self, version: int) -> None:
        """At once: `Registry.promote` takes its time to compare checksums, and the replica's look is what counts."""
        write_atomically(self.folders.registry.root / self.campaign / "current", f"{version}\n".encode())


def tiny_versions(folders: Folders, count: int, model: TinyModel) -> Versions:
    numbers = range(1, count + 1)
    for _ in numbers:
        publish(folders.registry, model)
        model = next_version(model)
    versions = Versions(folders, model.campaign, numbers)
    versions.promote(1)
    return versions


def demo_versions(folders: Folders, count: int) -> Versions:
    """The demo's network, with heads drawn at random: what rounds on a frozen backbone publish. Needs CIFAR-10."""
    # Here: they bring torch, which the suite without the demo's network does not need.
    from tests.bench.backbone import CAMPAIGN
    from tests.bench.serving import publish_model

    publish_model(folders)
    numbers = range(2, count + 2)  # version 1 has a zero head, which is never promoted
    for version in numbers:
        _publish_other_head(folders.registry, CAMPAIGN, version)
    versions = Versions(folders, CAMPAIGN, numbers)
    versions.promote(2)
    return versions


def _publish_other_head(registry: Registry, campaign: str, version: int) -> None:
    """A version like the campaign's first with another head."""
    first, staged = registry.version_dir(campaign, 1), registry.staging_dir()
    for name in (MODEL_FILE, HEAD_FILE):
        graph = onnx.load(first / name)
        [weights] = [w for w in graph.graph.initializer if w.name == "head/weights"]
        drawn = np.random.default_rng(version).normal(0, 0.1, weights.dims).astype(np.float32)
        weights.CopyFrom(numpy_helper.from_array(drawn, weights.name))
        onnx.save(graph, staged / name)
    changes = {
        "version": version,
        "round": version - 1,
        "head": "logistic",
        "files": {name: sha256_file(staged / name) for name in (MODEL_FILE, HEAD_FILE)},
    }
    (staged / MANIFEST_FILE).write_text(read_manifest(first).model_copy(update=changes).model_dump_json())
    registry.publish(staged, campaign, version)


def jpeg() -> bytes:
    """An encoded image of CIFAR-10's size."""
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


# ---- promotions -------------------------------------------------------------------------------------------


def promote_in_a_row(server: RunningInference, versions: Versions, numbers: Sequence[int]) -> dict[int, float]:
    """Promote each as soon as the one before answers. Gives when each was promoted, on time.time()'s clock."""
    promoted: dict[int, float] = {}
    for version in numbers:
        promoted[version] = time.time()
        versions.promote(version)
        deadline = time.monotonic() + 60
        while version not in serving_since(server):
            assert time.monotonic() < deadline, f"version {version} was not taken up"
            time.sleep(0.005)
    return promoted


def serving_since(server: RunningInference) -> dict[int, float]:
    """Version -> when this replica first let it answer, on time.time()'s clock, by its log."""
    since: dict[int, float] = {}
    for record in records(server, "model_serving"):
        when = datetime.fromisoformat(str(record["timestamp"])).timestamp()
        since.setdefault(int(str(record["version"])), when)
    return since


def records(server: RunningInference, event: str) -> list[Mapping[str, object]]:
    """What the server has logged of that name."""
    parsed = [json.loads(line) for line in list(server.logged) if f'"{event}"' in line]
    return [record for record in parsed if record["event"] == event]


def untimely(answers: Answers, since: Mapping[int, float], promoted: Mapping[int, float]) -> list[str]:
    """Answers of versions that were not current at any moment of their call.

    The replica's log says to the microsecond when a version began to answer: the line is written in the same step of
    the event loop as the change, which nothing else can come between. So a version is current from its own line
    to the next version's, and a call [started, ended] may be answered by it if both intervals meet: it has ended
    after the one line and started before the other. No version may answer that was not promoted yet.
    """
    order = sorted(since, key=lambda version: since[version])
    until = dict(zip(order, [*(since[v] for v in order[1:]), float("inf")], strict=True))
    wrong = []
    for started, ended, version in zip(answers.started, answers.ended, answers.version, strict=True):
        if version == FAILED:
            continue
        if not (since[version] <= ended and started <= until[version] and promoted.get(version, 0.0) <= ended):
            wrong.append(f"version {version} from {since[version]} to {until[version]} answered [{started}, {ended}]")
    return wrong


# ---- memory -----------------------------------------------------------------------------------------------


def memory_over_swaps(versions: Versions, swaps: int) -> list[float]:
    """Megabytes of anonymous memory of a server after each of so many swaps between two versions."""
    one, other, *_ = versions.numbers
    versions.promote(one)
    image, after = jpeg(), list[float]()
    with (
        running_inference(versions.folders, INFERENCE_POLL_SECONDS="0.02") as server,
        QuerentClient(server.address, timeout_s=60) as client,
    ):
        for swap in range(swaps):
            version = other if swap % 2 == 0 else one
            versions.promote(version)
            deadline = time.monotonic() + 60
            while len(records(server, "model_serving")) < swap + 2:
                assert time.monotonic() < deadline, f"swap {swap} did not come"
                time.sleep(0.01)
            assert client.predict([image] * 8).version == version
            time.sleep(0.1)  # a few looks: the memory of what went is given back at the next one
            after.append(_anonymous_mb(server.process.pid))
    return after


def _anonymous_mb(pid: int) -> float:
    """What a process holds for itself, without mapped files."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)[0]) / 1024
