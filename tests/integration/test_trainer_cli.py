"""al-trainer as people type it: over a real database and registry, with clear errors and no traceback."""

import io
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from services.common.embeddings import EmbeddingStore
from services.common.feedback import Feedback, to_line
from services.common.manifest import VariantCheck
from services.common.registry import Registry
from services.common.samples import SampleStore
from services.trainer.campaign import Pick, Round
from services.trainer.campaign_store import CampaignStore
from services.trainer.database import open_database
from services.trainer.leases import LeaseStore
from services.trainer.oracle import Answer
from tests.tiny_models import TinyModel, publish, write_manifest
from tests.unit.trainer.conftest import make_config

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path):
    return os.environ | {
        "TRAINER_DATABASE_URL": f"sqlite:///{tmp_path}/trainer.db",
        "TRAINER_REGISTRY_DIR": f"{tmp_path}/registry",
        "TRAINER_SOURCES_DIR": f"{tmp_path}/sources",
        "TRAINER_EMBEDDINGS_DIR": f"{tmp_path}/embeddings",
        "TRAINER_REPORTS_DIR": f"{tmp_path}/reports",
        "TRAINER_CACHE_DIR": f"{tmp_path}/cache",
        "TRAINER_REDIS_URL": "redis://127.0.0.1:1/0",
        "TRAINER_INFERENCE_ADDRESS": "127.0.0.1:1",
        "QUERENT_DATA_DIR": f"{tmp_path}/data",
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }


@pytest.fixture
def al_trainer(environment):
    def run(*arguments, **more):
        return subprocess.run(
            [sys.executable, "-m", "services.trainer.cli", *map(str, arguments)],
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def images(tmp_path):
    for number in range(30):
        path = tmp_path / "data" / "pets" / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
        path.write_bytes(buffer.getvalue())


def write_config(tmp_path, labels=10, extra=""):
    path = tmp_path / "campaign.yaml"
    path.write_text(
        "name: pets\n"
        "source: {kind: folder, location: pets, size: 8}\n"
        "backbone: {name: base_cnn, weights: none}\n"
        f"initial: {{labels: {labels}}}\n"
        "rounds: {count: 1, batch: 5}\n" + extra
    )
    return path


@pytest.fixture
def finished(tmp_path, environment):
    """A finished campaign of one round, written as a worker would."""
    engine = open_database(environment["TRAINER_DATABASE_URL"])
    store, leases = CampaignStore(engine), LeaseStore(engine)
    campaign = store.create(make_config(rounds={"count": 0, "batch": 1}), "source", ["cat", "dog"])
    lease = leases.take_lease(campaign.name, "me", 30)
    report = {
        "labels": 2,
        "class_counts": {"cat": 1, "dog": 1},
        "metrics": {"test": {"accuracy": 0.75, "macro_f1": 0.7, "ece": 0.05}},
        "confusion": [[3, 1], [1, 3]],
    }
    store.begin_round(lease, 1, "random")
    store.save_picks(lease, 1, [Pick("a", None, True), Pick("b", None, True)], {"score": 0.5}, None)
    answers = [Answer("a", 0, "simulated", "simulated"), Answer("b", 1, "simulated", "simulated")]
    store.save_labels(lease, 1, answers, 2)
    done = Round(campaign.name, 1, "done", "random", 2, True, "the first", seconds={"fit": 1.0}, report=report)
    store.save_round(lease, done)
    store.finish(lease, "the budget is spent", 1)
    registry = Registry(tmp_path / "registry")
    for version in (1, 2, 3):
        publish(registry, TinyModel(campaign=campaign.name, version=version, classes=("cat", "dog")))
    registry.promote(campaign.name, 3)
    return campaign.name


def test_run_without_redis_records_the_campaign_and_says_what_to_do(al_trainer, tmp_path, images):
    result = al_trainer("run", write_config(tmp_path), "--name-file", tmp_path / "name")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "name").read_text() == "pets-1"
    assert "Redis cannot be reached" in result.stdout
    assert "al-trainer doctor" in result.stdout
    assert "pets-1" in al_trainer("list").stdout


@pytest.mark.parametrize(
    ("labels", "extra", "told"),
    [
        (10, "strateggy: margin\n", "unknown key 'strateggy'; did you mean 'strategy'?"),
        (10, "strategy: margins\n", "unknown strategy 'margins'; did you mean 'margin'?"),
        (1000, "", "the pool has 24 samples and the budget is 1005 labels"),
    ],
)
def test_a_config_that_cannot_run_is_explained(al_trainer, tmp_path, images, labels, extra, told):
    result = al_trainer("run", write_config(tmp_path, labels, extra))
    assert result.returncode == 1
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert "no campaigns yet" in al_trainer("list").stdout


def test_a_folder_that_is_not_there_is_named(al_trainer, tmp_path):
    result = al_trainer("run", write_config(tmp_path))
    assert result.returncode == 1
    assert "does not exist; set QUERENT_DATA_DIR" in result.stderr


def test_an_unknown_campaign_names_the_nearest(al_trainer, finished):
    for command in (["status"], ["pause"], ["resume"], ["cancel"], ["delete", "--yes"], ["report"], ["follow"]):
        result = al_trainer(*command, "demo-11")
        assert result.returncode == 1
        assert "no campaign 'demo-11'; did you mean 'demo-1'?" in result.stderr
        assert "Traceback" not in result.stderr


def test_status_tells_where_a_campaign_stands(al_trainer, finished):
    text = al_trainer("status").stdout
    assert "demo-1 is finished: the budget is spent" in text
    assert "75.0" in text
    value = json.loads(al_trainer("status", finished, "--json").stdout)
    assert value["current_version"] == 3
    assert value["rounds"][-1]["metrics"]["test"]["accuracy"] == 0.75


def test_status_says_how_many_more_labels_or_why_it_cannot(al_trainer, finished):
    text = al_trainer("status", finished, "--target", "75%", "--target", "0.9").stdout
    assert "75% on randomly drawn rows: cannot say yet: the curve needs 4 rounds" in text
    assert "90% on randomly drawn rows: cannot say yet" in text
    (answer,) = json.loads(al_trainer("status", finished, "--json", "--target", "75%").stdout)["forecasts"]
    assert (answer["target"], answer["more"]) == (0.75, None)
    refused = al_trainer("status", finished, "--target", "75")
    assert refused.returncode == 1
    assert "'75' is not an accuracy" in refused.stderr


def test_follow_of_a_finished_campaign_prints_its_table_and_ends(al_trainer, finished):
    result = al_trainer("follow", finished)
    assert result.returncode == 0, result.stderr
    assert "accuracy 75.0%" in result.stdout


def test_states_change_only_where_it_makes_sense(al_trainer, tmp_path, images):
    al_trainer("run", write_config(tmp_path))
    assert "pets-1 is paused" in al_trainer("pause", "pets-1").stdout
    assert "only while it is running" in al_trainer("pause", "pets-1").stderr
    assert "pets-1 is running" in al_trainer("resume", "pets-1").stdout
    assert "first: al-trainer cancel" in al_trainer("delete", "pets-1", "--yes").stderr
    assert "pets-1 is cancelled" in al_trainer("cancel", "pets-1").stdout
    assert "pets-1 is deleted" in al_trainer("delete", "pets-1", "--yes").stdout
    assert "no campaigns yet" in al_trainer("list").stdout


def test_models_are_listed_promoted_rolled_back_pinned_and_pruned(al_trainer, finished, tmp_path):
    assert "* " in al_trainer("models", "list", finished).stdout
    assert "answers with version 2" in al_trainer("models", "promote", finished, 2).stdout
    assert "answers with version 1" in al_trainer("models", "rollback", finished).stdout
    assert "is pinned" in al_trainer("models", "pin", finished, 2).stdout
    assert "deleted 0 versions" in al_trainer("models", "prune", finished, "--keep", 1).stdout
    al_trainer("models", "pin", finished, 2, "--off")
    assert "deleted 1 versions: 2" in al_trainer("models", "prune", finished, "--keep", 1).stdout
    assert "published: 1, 3" in al_trainer("models", "promote", finished, 2).stderr


# ---- labels import-feedback ----------------------------------------------------------------------------


@pytest.fixture
def pets(al_trainer, tmp_path, images):
    """A running campaign of 24 pool images with a budget of 15, and the ids of both splits."""
    assert al_trainer("run", write_config(tmp_path)).returncode == 0
    (source,) = [path.stem for path in (tmp_path / "sources").glob("*.json")]
    samples = SampleStore.open(tmp_path / "sources", tmp_path / "data", source)
    return samples.ids("pool"), samples.ids("test")


def write_journal(tmp_path, *told, torn=b""):
    """(sample id, class) pairs, as a replica writes them."""
    path = tmp_path / "feedback" / "host-1-1-000.jsonl"
    path.parent.mkdir(exist_ok=True)
    lines = [to_line(Feedback(f"p{i}", "pets-1", 2, 1, s, "cat", c, "ann", 1.0, 2.0)) for i, (s, c) in enumerate(told)]
    path.write_bytes(b"".join(lines) + torn)
    return path.parent


def labels_of(environment, name="pets-1"):
    return CampaignStore(open_database(environment["TRAINER_DATABASE_URL"])).labels(name)


def test_feedback_is_imported_once_and_what_is_not_is_explained(al_trainer, tmp_path, environment, pets):
    (first, second, argued, *_), (tested, *_) = pets
    told = [(first, "cat"), (second, "dog"), (argued, "cat"), (argued, "dog"), (tested, "cat"), ("0" * 32, "cat")]
    journals = write_journal(tmp_path, *told, torn=b'{"annotator":"ann"')

    dry = al_trainer("labels", "import-feedback", "pets-1", journals, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "would be imported" in dry.stdout
    assert labels_of(environment) == []

    left_out = tmp_path / "left-out.jsonl"
    result = al_trainer("labels", "import-feedback", "pets-1", journals, "--left-out", left_out)
    assert result.returncode == 0, result.stderr
    for line in (
        "7 answers in 1 journal",
        "imported 2",
        "answers about one image that disagree: none is taken 2",
        "a test sample: never trained on 1",
        "an image that is not in the campaign's source 1",
        "damaged lines 1",
        f"{argued}: told 'dog' by ann",
        f"{'0' * 32}: told 'cat' by ann",
        "host-1-1-000.jsonl, line 7: torn",
        "round 1 trains on 2 new labels; 13 of 15 labels are left in the budget",
    ):
        assert line in " ".join(result.stdout.split()), line
    reasons = [json.loads(line)["why"] for line in left_out.read_text().splitlines()]
    assert len(reasons) == 4
    labels = labels_of(environment)
    assert [(it.sample_id, it.class_index, it.annotator, it.origin) for it in labels] == [
        (first, 0, "ann", "feedback"),
        (second, 1, "ann", "feedback"),
    ]

    again = al_trainer("labels", "import-feedback", "pets-1", journals)
    assert again.returncode == 0, again.stderr
    assert "nothing new for pets-1; 13 of 15 labels are left" in again.stdout
    assert labels_of(environment) == labels


def test_an_import_beyond_the_budget_says_how_much_was_left_out(al_trainer, tmp_path, environment, pets):
    journals = write_journal(tmp_path, *((sample, "cat") for sample in pets[0][:18]))
    result = al_trainer("labels", "import-feedback", "pets-1", journals)
    assert result.returncode == 0, result.stderr
    assert "beyond the budget 3" in " ".join(result.stdout.split())
    assert "0 of 15 labels are left" in result.stdout
    assert [it.sample_id for it in labels_of(environment)] == pets[0][:15]


def test_an_answer_that_contradicts_a_label_is_a_conflict_and_changes_nothing(al_trainer, tmp_path, environment, pets):
    al_trainer("labels", "import-feedback", "pets-1", write_journal(tmp_path, (pets[0][0], "cat")))
    before = labels_of(environment)
    journals = write_journal(tmp_path, (pets[0][0], "dog"))
    result = al_trainer("labels", "import-feedback", "pets-1", journals)
    assert result.returncode == 1
    assert f"{pets[0][0]}: told 'dog' by ann, labelled 'cat'" in result.stdout
    assert "nothing in these journals can be imported into pets-1" in result.stderr
    assert labels_of(environment) == before


# ---- labels audit ---------------------------------------------------------------------------------------


def test_an_audit_lists_wrong_labels_with_their_pictures(al_trainer, tmp_path, environment, pets):
    """Two clouds of embeddings, with two labels on the wrong side."""
    ids, store = pets[0], CampaignStore(open_database(environment["TRAINER_DATABASE_URL"]))
    lease = LeaseStore(open_database(environment["TRAINER_DATABASE_URL"])).take_lease("pets-1", "me", 30)
    side = {sample: number % 2 for number, sample in enumerate(ids)}
    wrong = ids[3:5]
    answers = [Answer(i, side[i] ^ (i in wrong), "simulated", "simulated-noise" if i in wrong else "x") for i in ids]
    store.begin_round(lease, 1, "random")
    store.save_picks(lease, 1, [Pick(i, None, True) for i in ids], {}, None)
    store.save_labels(lease, 1, answers, 2)
    (source,) = [path.stem for path in (tmp_path / "sources").glob("*.json")]
    publish(Registry(tmp_path / "registry"), TinyModel(campaign="pets-1", classes=("cat", "dog")))
    rows = np.random.default_rng(0).normal(scale=0.3, size=(len(ids), 4)).astype(np.float32)
    rows[:, 0] += [6 * side[i] for i in ids]
    EmbeddingStore(tmp_path / "embeddings", "tiny-embedding", source).append(ids, rows)

    result = al_trainer("labels", "audit", "pets-1", "--page", tmp_path / "look.html")
    assert result.returncode == 0, result.stderr
    assert "2 of 24 labels look wrong" in result.stdout
    assert "The simulated oracle got 2 wrong on purpose; 2 of them are listed." in result.stdout
    assert all(sample in result.stdout for sample in wrong)
    assert (tmp_path / "look.html").read_text().count("data:image/png;base64,") == 2
    assert len((tmp_path / "look.csv").read_text().splitlines()) == 3
    assert {it.sample_id: it.class_index for it in labels_of(environment)} == {
        a.sample_id: a.class_index for a in answers
    }


def test_a_campaign_without_labels_has_nothing_to_audit(al_trainer, pets):
    result = al_trainer("labels", "audit", "pets-1")
    assert result.returncode == 1
    assert "pets-1 has 0 labels and 0 versions: nothing to audit yet" in result.stderr


def test_an_import_that_cannot_be_is_explained(al_trainer, tmp_path, pets):
    journals = write_journal(tmp_path, (pets[0][0], "cat"))
    (tmp_path / "empty").mkdir()
    al_trainer("cancel", "pets-1")
    for campaign, folder, told in [
        ("pets-2", journals, "no campaign 'pets-2'; did you mean 'pets-1'?"),
        ("pets-1", tmp_path / "nowhere", "no journal"),
        ("pets-1", tmp_path / "empty", "no journals in"),
        ("pets-1", journals, "campaign 'pets-1' is cancelled"),
    ]:
        result = al_trainer("labels", "import-feedback", campaign, folder)
        assert result.returncode == 1
        assert told in result.stderr
        assert "Traceback" not in result.stderr


def test_models_list_says_which_variants_a_version_has_and_why_it_lacks_one(al_trainer, tmp_path):
    model = TinyModel(campaign="birds-1", variants=("fp16",))
    checks = {
        "fp16": VariantCheck(images=2000, agreement=0.9985),
        "int8": VariantCheck(refused="it agrees with fp32 on 92.70% of 2000 images; 99.5% are asked"),
    }
    write_manifest(model, publish(Registry(tmp_path / "registry"), model), {"variants": checks})
    listed = al_trainer("models", "list", "birds-1").stdout
    assert "fp16 99.85%" in listed
    assert "version 1 has no int8: it agrees with fp32 on 92.70%" in listed


def test_report_is_written_again(al_trainer, finished, tmp_path):
    assert al_trainer("report", finished).returncode == 0
    assert (tmp_path / "reports" / finished / "report.html").is_file()


def test_doctor_says_what_to_do_about_each_failure(al_trainer):
    result = al_trainer("doctor")
    assert result.returncode == 1
    for advice in ("start Redis", "al-inference serve", "set QUERENT_DATA_DIR"):
        assert advice in result.stdout
    assert "ok      database" in result.stdout
    assert "Traceback" not in result.stderr + result.stdout


def test_a_metrics_port_in_use_is_named_with_the_variable_to_set(al_trainer):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = al_trainer("worker", TRAINER_METRICS_PORT=port)
    assert result.returncode == 1
    assert f"port {port} on 127.0.0.1 cannot be used" in result.stderr
    assert "TRAINER_METRICS_PORT" in result.stderr


def test_a_bad_setting_is_explained(al_trainer):
    result = al_trainer("list", TRAINER_LEASE_SECONDS="soon")
    assert result.returncode == 1
    assert "TRAINER_LEASE_SECONDS" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_command_has_help(al_trainer):
    text = al_trainer("--help").stdout
    for command in (
        "run",
        "follow",
        "status",
        "list",
        "pause",
        "resume",
        "cancel",
        "delete",
        "report",
        "models",
        "labels",
        "doctor",
    ):
        assert command in text
    assert "Example" in al_trainer("run", "--help").stdout
    assert "Examples" in al_trainer("labels", "import-feedback", "--help").stdout
