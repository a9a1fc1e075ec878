"""Following the registry while serving."""

import asyncio
import time
from collections.abc import Callable

import numpy as np
import pytest

from services.common.errors import DamagedArtefact, NotFound
from services.common.registry import Registry
from tests.damage import DAMAGES
from tests.integration.inference.harness import Served, serving
from tests.tiny_models import Folders, TinyModel, next_version, probabilities, publish, stage

PIXELS = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def serves(served: Served, version: int) -> None:
    """Wait until `version` answers."""
    deadline = time.monotonic() + 10
    while (await served.client.predict(PIXELS)).version != version:
        assert time.monotonic() < deadline, f"version {version} was not taken up"
        await asyncio.sleep(0.01)


def failures(served: Served, reason: str) -> float:
    return served.metric("inference_model_load_failures_total", reason=reason)


async def test_a_promoted_version_is_taken_up_and_answers_with_its_own_head(folders: Folders) -> None:
    model = TinyModel()
    async with serving(folders) as served:
        publish(folders.registry, model, promote=True)
        await until(lambda: served.metric("inference_model_info", **info(1)) == 1)
        publish(folders.registry, next_version(model), promote=True)
        await serves(served, 2)
        answer = await served.client.predict(PIXELS)
        given = [{c.label: c.probability for c in p.classes} for p in answer.predictions]
        expected = probabilities(next_version(model), PIXELS)
        for row, prediction in zip(expected, given, strict=True):
            np.testing.assert_allclose([prediction[name] for name in model.classes], row, atol=1e-5)


async def test_twenty_swaps_under_load_lose_nothing(folders: Folders) -> None:
    model = TinyModel()
    publish(folders.registry, model, promote=True)
    heads = {v: probabilities(TinyModel(version=v, seed=v - 1), PIXELS).argmax(axis=1) for v in range(1, 22)}
    answers: list[tuple[int, list[int]]] = []
    done = False

    async def caller(served: Served) -> None:
        while not done:
            answer = await served.client.predict(PIXELS, top=1)
            answers.append((answer.version, [p.classes[0].index for p in answer.predictions]))

    async with serving(folders) as served:
        callers = [asyncio.create_task(caller(served)) for _ in range(8)]
        for _ in range(20):
            model = next_version(model)
            await asyncio.to_thread(publish, folders.registry, model, True)
            while not answers or answers[-1][0] != model.version:
                await asyncio.sleep(0.005)
        done = True
        await asyncio.gather(*callers)
        assert served.metric("inference_model_info", **info(21)) == 1
        assert not served.has_series("inference_model_info", **info(20))
        assert not served.has_series("inference_run_seconds_count", model="tiny", version="20")
    assert {version for version, _ in answers} == set(range(1, 22))
    assert all(classes == heads[version].tolist() for version, classes in answers)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", "checksum"),
        ("bit flipped", "checksum"),
        ("bit flipped in the head", "checksum"),
        ("missing", "checksum"),
        ("another version's network", "checksum"),
        ("another version's head", "checksum"),
        ("no manifest", "manifest"),
        ("a manifest that is no JSON", "manifest"),
        ("another version's manifest", "manifest"),
        ("other classes in the manifest", "contract"),
        ("another size in the manifest", "contract"),
        ("not a graph", "graph"),
        ("another model's head", "contract"),
        ("another input", "contract"),
        ("weights that are not numbers", "contract"),
    ],
)
async def test_a_damaged_version_is_refused_once_and_the_old_one_serves_on_until_it_is_repaired(
    folders: Folders, damage: str, reason: str
) -> None:
    first = TinyModel()
    publish(folders.registry, first, promote=True)
    async with serving(folders) as served:
        second = next_version(first)
        promote_damaged(folders.registry, second, damage)
        await until(lambda: failures(served, reason) == 1)
        await asyncio.sleep(0.15)  # several polls
        assert failures(served, reason) == 1
        assert (await served.client.predict(PIXELS)).version == 1
        with pytest.raises(DamagedArtefact):
            await served.client.predict(PIXELS, version=2)
        assert failures(served, reason) == 1

        stage(second, folders.registry.root / "tiny" / "2")
        await serves(served, 2)


@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "no manifest", "another version's head"])
async def test_damage_to_the_files_of_the_version_that_answers_reaches_nobody(folders: Folders, damage: str) -> None:
    first = TinyModel()
    folder = publish(folders.registry, first, promote=True)
    publish(folders.registry, next_version(first))
    async with serving(folders) as served:
        expected = await served.client.predict(PIXELS)
        DAMAGES[damage](folder, folders.registry, first)
        reason = "manifest" if damage == "no manifest" else "checksum"
        await until(lambda: failures(served, reason) == 1)
        await asyncio.sleep(0.1)  # several polls
        assert failures(served, reason) == 1
        assert (await served.client.predict(PIXELS)).predictions == expected.predictions
        folders.registry.promote("tiny", 2)
        await serves(served, 2)


def promote_damaged(registry: Registry, model: TinyModel, damage: str) -> None:
    """Publish, damage and promote a version in such a way that no reader sees it whole."""
    staged = registry.staging_dir()
    stage(model, staged)
    DAMAGES[damage](staged, registry, model)
    registry.publish(staged, model.campaign, model.version)
    (registry.root / model.campaign / "current").write_text(f"{model.version}\n")


@pytest.mark.parametrize("content", ["not a number", "9"])
async def test_a_current_that_names_nothing_is_refused_and_the_old_version_serves_on(
    folders: Folders, content: str
) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    publish(folders.registry, TinyModel(version=2))
    async with serving(folders) as served:
        (folders.registry.root / "tiny" / "current").write_text(content)
        reason = "missing" if content == "9" else "current"
        await until(lambda: failures(served, reason) == 1)
        await asyncio.sleep(0.1)
        assert failures(served, reason) == 1
        assert (await served.client.predict(PIXELS)).version == 1
        folders.registry.promote("tiny", 2)
        await serves(served, 2)
        (folders.registry.root / "tiny" / "current").write_text(content)
        await until(lambda: failures(served, reason) == 2)


@pytest.mark.parametrize("garbage", [b"\xff\xfe", b"two", b"0", b""])
async def test_one_campaigns_garbled_current_stops_no_other(folders: Folders, garbage: bytes) -> None:
    publish(folders.registry, TinyModel(campaign="broken"), promote=True)
    (folders.registry.root / "broken" / "current").write_bytes(garbage)
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders) as served:
        await until(lambda: served.metric("inference_model_info", **info(1)) == 1)
        answer = await served.client.predict(PIXELS, model="tiny")
        assert answer.version == 1


async def test_a_campaign_made_anew_under_its_old_name_answers_with_its_own_model(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders) as served:
        await until(lambda: served.metric("inference_model_info", **info(1)) == 1)
        folders.registry.delete("tiny")
        other = TinyModel(seed=5, classes=("x", "y", "z"))
        publish(folders.registry, other, promote=True)
        deadline = time.monotonic() + 10
        given: dict[str, float] = {}
        while set(given) != set(other.classes):
            assert time.monotonic() < deadline, "the old campaign's model went on answering"
            answer = await served.client.predict(PIXELS, model="tiny")
            given = {c.label: c.probability for c in answer.predictions[0].classes}
        expected = probabilities(other, PIXELS)[0]
        np.testing.assert_allclose([given[label] for label in other.classes], expected, atol=1e-5)


async def test_a_registry_that_is_away_for_a_moment_changes_nothing(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders) as served:
        folders.registry.root.rename(folders.root / "away")
        await asyncio.sleep(0.1)
        assert (await served.client.predict(PIXELS)).version == 1
        (folders.root / "away").rename(folders.registry.root)
        publish(folders.registry, TinyModel(version=2), promote=True)
        await serves(served, 2)


async def test_a_rollback_is_followed(folders: Folders) -> None:
    for version in (1, 2):
        publish(folders.registry, TinyModel(version=version), promote=True)
    async with serving(folders) as served:
        assert (await served.client.predict(PIXELS)).version == 2
        folders.registry.rollback("tiny")
        await serves(served, 1)


async def test_a_deleted_campaign_is_gone_and_its_series_too(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders) as served:
        folders.registry.delete("tiny")
        await until(lambda: not served.has_series("inference_model_info", **info(1)))
        with pytest.raises(NotFound):
            await served.client.predict(PIXELS, model="tiny")


async def test_a_version_published_a_moment_ago_is_loaded_on_demand(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders, poll_seconds=60) as served:
        publish(folders.registry, TinyModel(version=2))
        assert (await served.client.predict(PIXELS, version=2)).version == 2
        publish(folders.registry, TinyModel(campaign="new"), promote=True)
        assert (await served.client.predict(PIXELS, model="new")).model == "new"


async def test_no_more_versions_stay_in_memory_than_asked_for(folders: Folders) -> None:
    publish(folders.registry, TinyModel(), promote=True)
    for version in range(2, 7):
        publish(folders.registry, TinyModel(version=version))
    async with serving(folders, max_loaded=3) as served:
        for version in range(2, 7):
            await served.client.predict(PIXELS, version=version)
        assert [v for v in range(1, 7) if served.has_series("inference_model_info", **info(v))] == [4, 5, 6]
        assert (await served.client.predict(PIXELS)).version == 1


async def test_get_model_and_list_models_tell_what_is_promoted_published_and_loaded(folders: Folders) -> None:
    publish(folders.registry, TinyModel(accuracy=0.75), promote=True)
    publish(folders.registry, TinyModel(version=2))
    publish(folders.registry, TinyModel(campaign="waiting"))
    async with serving(folders) as served:
        tiny = await served.client.get_model("tiny")
        assert (tiny.version, tiny.current_version, list(tiny.published_versions)) == (1, 1, [1, 2])
        assert (tiny.loaded, tiny.provider) == (True, "CPUExecutionProvider")
        assert tiny.test_metrics["accuracy"] == 0.75
        assert not (await served.client.get_model("tiny", version=2)).loaded
        models = await served.client.list_models()
        assert [(m.name, m.version, m.current_version, m.loaded) for m in models] == [
            ("tiny", 1, 1, True),
            ("waiting", 1, 0, False),
        ]


def info(version: int) -> dict[str, str]:
    return {
        "model": "tiny",
        "version": str(version),
        "round": str(version - 1),
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
    }
