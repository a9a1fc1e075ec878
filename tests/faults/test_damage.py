"""Every kind of damage, one after the other, to a real server that is being used."""

import re
import shutil
import time
import urllib.request
from collections.abc import Callable

import pytest

from services.client.client import QuerentClient
from services.common.errors import DamagedArtefact
from services.common.files import write_atomically
from tests.damage import DAMAGES
from tests.faults.callers import calling
from tests.tiny_models import Folders, RunningInference, TinyModel, next_version, png, publish, running_inference, stage

pytestmark = [pytest.mark.slow, pytest.mark.faults]

REASONS = {
    "truncated": "checksum",
    "bit flipped": "checksum",
    "bit flipped in the head": "checksum",
    "missing": "checksum",
    "another version's network": "checksum",
    "another version's head": "checksum",
    "no manifest": "manifest",
    "a manifest that is no JSON": "manifest",
    "another version's manifest": "manifest",
    "other classes in the manifest": "contract",
    "another size in the manifest": "contract",
    "not a graph": "graph",
    "another model's head": "contract",
    "another input": "contract",
    "weights that are not numbers": "contract",
}


def failures(server: RunningInference) -> dict[str, float]:
    """Reason -> count."""
    page = urllib.request.urlopen(server.metrics_url, timeout=5).read().decode()
    found = re.findall(r'^inference_model_load_failures_total\{reason="(\w+)"\} (\S+)', page, re.MULTILINE)
    return {reason: float(count) for reason, count in found}


def settled(server: RunningInference) -> dict[str, float]:
    """The counts when they have not moved for several looks at the registry."""
    counts: dict[str, float] = {}
    while counts != (counts := failures(server)):
        time.sleep(0.4)
    return counts


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def until_failures(server: RunningInference, expected: dict[str, float]) -> None:
    until(lambda: failures(server) == expected)
    assert settled(server) == expected


def until_serving(client: QuerentClient, version: int) -> None:
    until(lambda: client.predict([png()]).version == version)


def test_all_kinds_are_told() -> None:
    assert REASONS.keys() == DAMAGES.keys()


def test_each_damage_is_refused_and_counted_once_while_every_call_is_answered(folders: Folders) -> None:
    """First to a version that is promoted, then to the files of the one that answers; good ones follow each time."""
    good = TinyModel(work=1)
    publish(folders.registry, good, promote=True)
    counted: dict[str, float] = {}
    root = folders.registry.root / good.campaign
    with running_inference(folders) as server, QuerentClient(server.address, timeout_s=20) as client:
        with calling(server.address, png(), 8) as load:
            for damage, reason in REASONS.items():
                promoted = next_version(good)
                staged = folders.registry.staging_dir()
                stage(promoted, staged)
                DAMAGES[damage](staged, folders.registry, promoted)
                folders.registry.publish(staged, promoted.campaign, promoted.version)
                write_atomically(root / "current", f"{promoted.version}\n".encode())
                counted = {**counted, reason: counted.get(reason, 0) + 1}
                until_failures(server, counted)
                assert client.predict([png()]).version == good.version
                with pytest.raises(DamagedArtefact):
                    client.predict([png()], version=promoted.version)

                good = next_version(promoted)
                publish(folders.registry, good, promote=True)
                until_serving(client, good.version)
                DAMAGES[damage](root / str(good.version), folders.registry, good)
                # In place, and seen half done it may be: another refusal, perhaps for another reason.
                until(lambda: failures(server).get(reason, 0) > counted[reason])  # noqa: B023  # called at once
                counted = settled(server)
                assert client.predict([png()]).version == good.version

                good = next_version(good)
                publish(folders.registry, good, promote=True)
                until_serving(client, good.version)
        assert load.answers.failed == 0
        # 2, 5, 8, ... were damaged when they were promoted.
        assert not any(version % 3 == 2 for version in load.answers.version)


def test_a_pointer_to_nothing_and_a_version_that_goes_stop_no_call(folders: Folders) -> None:
    publish(folders.registry, TinyModel(work=1), promote=True)
    publish(folders.registry, TinyModel(work=1, version=2, seed=1))
    current = folders.registry.root / "tiny" / "current"
    with running_inference(folders) as server, QuerentClient(server.address, timeout_s=20) as client:
        with calling(server.address, png(), 8) as load:
            current.write_text("99\n")
            until_failures(server, {"missing": 1})
            current.write_bytes(b"\xff\xfe\x00")
            until_failures(server, {"missing": 1, "current": 1})
            shutil.rmtree(folders.registry.root / "tiny" / "1")
            time.sleep(0.3)  # several looks
            folders.registry.promote("tiny", 2)
            until_serving(client, 2)
        assert load.answers.failed == 0
        assert failures(server) == {"missing": 1, "current": 1}
