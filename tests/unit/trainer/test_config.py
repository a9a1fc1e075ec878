import pytest

from services.common.errors import BadConfig
from services.trainer.config import load_config
from tests.unit.trainer.conftest import make_config


def test_a_misspelt_key_names_the_nearest_right_one():
    with pytest.raises(BadConfig, match=r"unknown key 'backbon'; did you mean 'backbone'\?"):
        make_config(backbon={"name": "vgg16"})


def test_a_misspelt_key_inside_a_section_is_found_too():
    with pytest.raises(BadConfig, match=r"unknown key 'rounds.batchs'; did you mean 'batch'\?"):
        make_config(rounds={"count": 1, "batchs": 10})


def test_every_mistake_is_reported_at_once():
    with pytest.raises(BadConfig) as caught:
        make_config(name="Not A Name", rounds={"count": -1, "batch": 0}, promotion="sometimes")
    text = str(caught.value)
    assert all(key in text for key in ("name:", "rounds.count", "rounds.batch", "promotion"))


@pytest.mark.parametrize("learner", [{"c_grid": []}, {"c_grid": [0]}, {"c_grid": [-1]}, {"folds": 1}, {"members": 1}])
def test_a_learner_that_could_learn_nothing_is_refused(learner):
    with pytest.raises(BadConfig, match=f"learner.{next(iter(learner))}"):
        make_config(learner=learner)


def test_heads_are_asked_for_by_name():
    assert make_config().learner.head == "logistic"
    chosen = make_config(learner={"head": "dropout", "members": 8}).learner
    assert (chosen.head, chosen.members) == ("dropout", 8)
    with pytest.raises(BadConfig, match=r"learner\.head.*'logistic'.*'self_training'"):
        make_config(learner={"head": "forest"})
    with pytest.raises(BadConfig, match=r"learner\.members"):
        make_config(learner={"members": 1})


def test_a_network_that_is_trained_has_no_choice_of_heads():
    with pytest.raises(BadConfig, match="'mlp' needs mode head"):
        make_config(learner={"mode": "finetune", "head": "mlp"})


@pytest.mark.parametrize("taps", ["default", "last", 2, (2, 4)])
def test_taps_are_a_name_a_number_or_a_list(taps):
    assert make_config(backbone={"name": "vgg16", "taps": taps}).backbone.taps == taps


@pytest.mark.parametrize("taps", ["first", 0, [], [0], ["last"], True, 1.5])
def test_other_taps_are_refused_in_one_line(taps):
    with pytest.raises(BadConfig, match=r"backbone\.taps: .* such as \[3, 5\]") as caught:
        make_config(backbone={"name": "vgg16", "taps": taps})
    assert len(str(caught.value).splitlines()) == 2


def test_default_taps_are_those_of_the_named_backbone():
    assert make_config(backbone={"name": "vgg16"}).backbone.resolved_taps == 3
    assert make_config(backbone={"name": "vgg16", "taps": "last"}).backbone.resolved_taps == "last"
    assert make_config(backbone={"name": "resnet18.tv_in1k"}).backbone.resolved_taps == "last"


TWO = [{"name": "vgg16", "input_size": 64}, {"name": "resnet50"}]


def test_several_backbones_are_named_by_their_members_and_are_a_committee():
    config = make_config(backbone={"members": TWO}, strategy="vote_entropy")
    assert config.backbone.name == "vgg16+resnet50"
    assert config.committee_size == 2
    assert type(config).model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ({"members": TWO[:1]}, "at least two"),
        ({"members": [TWO[0], {"members": TWO}]}, "at least two single backbones"),
        ({"members": [TWO[0], TWO[0]]}, "twins would never disagree"),
        ({"members": TWO, "input_size": 96}, "input_size belongs to each of the members"),
        ({"members": TWO, "name": "both"}, "name belongs to each of the members"),
        ({"members": [{"nam": "vgg16"}, TWO[1]]}, "missing key 'backbone.members.0.name'"),
    ],
)
def test_what_is_no_committee_of_backbones_is_refused(backbone, message):
    with pytest.raises(BadConfig, match=message):
        make_config(backbone=backbone)


@pytest.mark.parametrize("learner", [{"mode": "finetune"}, {"head": "cosine"}, {"head": "bootstrap"}])
def test_several_backbones_carry_one_linear_head_each(learner):
    with pytest.raises(BadConfig, match="each carries one linear head"):
        make_config(backbone={"members": TWO}, learner=learner)


def test_variants_are_asked_for_by_name_and_nobody_gets_them_unasked():
    assert make_config().export.variants == ()
    assert make_config(export={"variants": ["fp16", "int8"]}).export.variants == ("fp16", "int8")
    with pytest.raises(BadConfig, match=r"export\.variants"):
        make_config(export={"variants": ["fp8"]})


def test_the_budget_is_the_initial_labels_and_all_batches():
    config = make_config(initial={"labels": 100}, rounds={"count": 5, "batch": 100})
    assert config.budget == 600
    assert [config.batch_of(r) for r in range(7)] == [0, 100, 100, 100, 100, 100, 100]
    assert config.last_round == 6


def test_what_is_no_yaml_is_explained(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: [unclosed")
    with pytest.raises(BadConfig, match="not valid YAML"):
        load_config(path)
    with pytest.raises(BadConfig, match="cannot be read"):
        load_config(tmp_path / "missing.yaml")


def test_a_folder_source_needs_a_location():
    with pytest.raises(BadConfig, match="needs a location"):
        make_config(source={"kind": "folder", "size": 32})


@pytest.mark.parametrize(
    ("finetune", "advice"),
    [
        ({"precision": "fp16", "device": "cpu"}, "with device cpu use bf16 or fp32"),
        ({"patience": 3}, "set validation_share"),
        ({"batch_size": 4, "accumulate": 8}, "accumulate is at most batch_size"),
        ({"bootstrap": True}, "set members to 2 or more"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"stages": 0}, r"learner\.finetune\.stages"),
        ({"stages": "some"}, r"learner\.finetune\.stages"),
    ],
)
def test_settings_of_fine_tuning_that_do_not_go_together_say_what_to_do(finetune, advice):
    with pytest.raises(BadConfig, match=advice):
        make_config(learner={"mode": "finetune", "finetune": finetune})


def test_a_key_that_has_moved_is_told_its_new_place():
    with pytest.raises(BadConfig, match=r"epochs, device: moved; write learner\.finetune\.epochs"):
        make_config(learner={"mode": "finetune", "device": "cpu", "epochs": 3})


def test_members_of_a_trained_committee_count_as_a_committee():
    assert make_config(learner={"mode": "finetune", "finetune": {"members": 3}}).learner.committee_size == 3
    assert make_config(learner={"mode": "finetune"}).learner.committee_size == 1
