import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from services.common.errors import BadConfig, NotFound
from services.common.samples import SampleStore, sample_id
from services.trainer.config import SourceConfig
from services.trainer.oracle import read_truth
from services.trainer.sources import make_source


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (10, 10), (value % 256, value // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def quiet(phase: str, done: int, total: int) -> None: ...


def build(tmp_path, **config):
    source = make_source(SourceConfig(size=8, **config), tmp_path / "data", tmp_path / "sources", quiet)
    return source, SampleStore.open(tmp_path / "sources", tmp_path / "data", source.source_id)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data" / "pets"
    for number in range(20):
        path = root / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return root


def test_a_folder_of_classes_becomes_a_pool_and_a_held_out_test(tmp_path, folder):
    source, store = build(tmp_path, kind="folder", location="pets")
    assert source.classes == ("cat", "dog")
    assert source.splits == {"pool": 16, "test": 4}
    assert not set(store.ids("pool")) & set(store.ids("test"))
    assert store.images(store.ids("test")).shape == (4, 8, 8, 3)


def test_ids_come_from_the_content_and_tell_no_name(tmp_path, folder):
    _, store = build(tmp_path, kind="folder", location="pets")
    assert {*store.ids("pool"), *store.ids("test")} == {sample_id(png(n)) for n in range(20)}


def test_exact_duplicates_get_ids_of_their_own(tmp_path, folder):
    (folder / "cat" / "copy.png").write_bytes(png(1))
    _, store = build(tmp_path, kind="folder", location="pets")
    ids = {*store.ids("pool"), *store.ids("test")}
    assert {sample_id(png(1)), sample_id(png(1)) + "-2"} <= ids


def test_what_is_tested_on_is_not_in_the_pool_under_another_id(tmp_path, folder):
    for name in ("train", "test"):
        for number in range(6):
            path = tmp_path / "data" / "both" / name / ("cat" if number % 2 else "dog") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number + (3 if name == "test" else 0)))
    _, store = build(tmp_path, kind="folder", location="both")
    contents = {split: {i[:32] for i in store.ids(split)} for split in ("pool", "test")}
    assert len(contents["test"]) == 6
    assert contents["pool"] == {sample_id(png(n)) for n in (0, 1, 2)}


def test_held_out_duplicates_are_held_out_together(tmp_path, folder):
    for number in range(20):
        (folder / "cat" / f"copy-{number}.png").write_bytes(png(number))
    _, store = build(tmp_path, kind="folder", location="pets")
    assert not {i[:32] for i in store.ids("pool")} & {i[:32] for i in store.ids("test")}


def test_a_split_folder_of_another_name_is_asked_about(tmp_path):
    for path in ("training/cat/1.png", "test/cat/2.png"):
        (tmp_path / "data" / "named" / path).parent.mkdir(parents=True)
        (tmp_path / "data" / "named" / path).write_bytes(png(len(path)))
    with pytest.raises(BadConfig, match=r"none 'train'.*test, training.*source\.pool\.split"):
        build(tmp_path, kind="folder", location="named")


def test_the_truth_is_the_class_folder(tmp_path, folder):
    source, _ = build(tmp_path, kind="folder", location="pets")
    truth = read_truth(tmp_path / "sources", source)
    assert truth[sample_id(png(1))] == 0
    assert truth[sample_id(png(2))] == 1


def test_making_it_again_gives_the_same_source(tmp_path, folder):
    first, _ = build(tmp_path, kind="folder", location="pets")
    second, _ = build(tmp_path, kind="folder", location="pets")
    assert first == second


def test_a_changed_folder_gives_another_source(tmp_path, folder):
    first, _ = build(tmp_path, kind="folder", location="pets")
    (folder / "cat" / "new.png").write_bytes(png(99))
    second, _ = build(tmp_path, kind="folder", location="pets")
    assert first.source_id != second.source_id
    assert sum(second.splits.values()) == 21


def test_images_that_cannot_be_read_are_left_out_and_listed(tmp_path, folder):
    (folder / "cat" / "broken.png").write_bytes(png(50)[:40])
    (folder / "cat" / "empty.png").write_bytes(b"")
    source, _ = build(tmp_path, kind="folder", location="pets")
    assert sum(source.splits.values()) == 20
    listed = (tmp_path / "sources" / f"{source.source_id}.skipped.txt").read_text()
    assert "cat/broken.png" in listed
    assert "cat/empty.png: the image is empty" in listed


def test_a_folder_with_no_images_says_so(tmp_path):
    (tmp_path / "data" / "empty").mkdir(parents=True)
    with pytest.raises(BadConfig, match="has no images"):
        build(tmp_path, kind="folder", location="empty")
    with pytest.raises(BadConfig, match="does not exist; set QUERENT_DATA_DIR"):
        build(tmp_path, kind="folder", location="nowhere")


def test_an_unknown_class_names_the_file_and_the_nearest_class(tmp_path, folder):
    with pytest.raises(BadConfig, match=r"cat/.*png has the class 'cat'.*did you mean 'cats'"):
        build(tmp_path, kind="folder", location="pets", classes=("cats", "dog"))


def test_a_flat_folder_has_no_truth_to_simulate_with(tmp_path):
    root = tmp_path / "data" / "flat"
    root.mkdir(parents=True)
    for number in range(5):
        (root / f"{number}.png").write_bytes(png(number))
    source, _ = build(tmp_path, kind="folder", location="flat")
    with pytest.raises(BadConfig, match="have no class"):
        read_truth(tmp_path / "sources", source)


def test_hugging_face_parquet_keeps_class_order_and_limits(tmp_path):
    root = tmp_path / "data" / "cifar10"
    root.mkdir(parents=True)
    features = {"img": {"_type": "Image"}, "label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}
    for split, count in (("train", 30), ("test", 10)):
        images = [{"bytes": png(n + 100 * (split == "test")), "path": None} for n in range(count)]
        table = pa.table(
            {
                "img": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "label": pa.array([n % 2 for n in range(count)], pa.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet", row_group_size=7)
    source, store = build(tmp_path, kind="cifar10", pool={"split": "train", "limit": 12})
    assert source.classes == ("zebra", "ant")
    assert source.splits == {"pool": 12, "test": 10}
    wanted = sorted(sample_id(png(n)) for n in range(30))[:12]
    assert sorted(store.ids("pool")) == wanted
    assert [sample_id(e) for e in store.encoded(store.ids("pool"))] == store.ids("pool")


def test_a_csv_manifest_names_files_classes_and_splits(tmp_path, folder):
    lines = [f"cat/{n}.png,feline,{'test' if n < 5 else 'pool'}" for n in range(1, 20, 2)]
    lines += [f"dog/{n}.png,canine,pool" for n in range(0, 20, 2)]
    (folder / "list.csv").write_text("file,label,split\n" + "\n".join(lines))
    source, store = build(tmp_path, kind="manifest", location="pets/list.csv")
    assert source.classes == ("canine", "feline")
    assert source.splits == {"pool": 18, "test": 2}
    assert store.images(store.ids("pool")).shape == (18, 8, 8, 3)


@pytest.mark.parametrize("entry", ["../secret.png,cat", "missing.png,cat", ",cat"])
def test_a_manifest_cannot_reach_outside_its_folder(tmp_path, folder, entry):
    (tmp_path / "data" / "secret.png").write_bytes(png(1))
    (folder / "list.csv").write_text(f"file,label\n{entry}\n")
    with pytest.raises(BadConfig, match="entry 1"):
        build(tmp_path, kind="manifest", location="pets/list.csv")


def test_an_unknown_sample_or_split_or_source_is_named(tmp_path, folder):
    _, store = build(tmp_path, kind="folder", location="pets")
    with pytest.raises(NotFound, match="no sample 'x'"):
        store.images(["x"])
    with pytest.raises(NotFound, match="no split 'train'"):
        store.ids("train")
    with pytest.raises(NotFound, match="no source"):
        SampleStore.open(tmp_path / "sources", tmp_path / "data", "../sources/x")
