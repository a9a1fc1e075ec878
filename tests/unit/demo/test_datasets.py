"""Data sets are found, downloaded with a checksum, or made; and always end as the same parquet layout."""

import hashlib
import io
import pickle
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from services.common.errors import DamagedArtefact, Unavailable
from services.common.samples import image_column
from services.demo.ports import any_free
from services.trainer import datasets
from services.trainer.config import SourceConfig
from services.trainer.listing import list_images

CLASSES = ["airplane", "automobile", "bird"]


def silent(line: str) -> None: ...


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it is served at."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

    folder = tmp_path / "web"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fake_cifar10(folder: Path, url: str) -> Any:
    """A CIFAR-10 of 8 train and 4 test images: torchvision's class with another archive and other sums."""
    from services.trainer.torchvision_shim import torchvision

    rng = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    contents = {
        "data_batch_1": {"data": rng.integers(0, 256, (8, 3072), np.uint8), "labels": [0, 1, 2, 0, 1, 2, 0, 1]},
        "test_batch": {"data": rng.integers(0, 256, (4, 3072), np.uint8), "labels": [2, 1, 0, 2]},
        "batches.meta": {"label_names": CLASSES},
    }
    for name, content in contents.items():
        (base / name).write_bytes(pickle.dumps(content))
    archive = folder / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, base.name)

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()

    class FakeCifar10(torchvision.datasets.CIFAR10):  # type: ignore[misc, name-defined]
        filename = archive.name
        tgz_md5 = md5(archive)
        train_list = (("data_batch_1", md5(base / "data_batch_1")),)
        test_list = (("test_batch", md5(base / "test_batch")),)
        meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(base / "batches.meta")}  # noqa: RUF012

    FakeCifar10.url = f"{url}/{archive.name}"
    return FakeCifar10, hashlib.sha256(archive.read_bytes()).hexdigest()


def test_a_downloaded_cifar10_is_written_without_loss(tmp_path: Path, web: tuple[Path, str]) -> None:
    dataset, sha256 = fake_cifar10(*web)
    target = tmp_path / "data" / "cifar10"
    datasets.download_cifar10(target, silent, dataset, sha256)
    config = SourceConfig(kind="cifar10", size=32)
    listed = list_images(config, target)
    assert listed.classes == tuple(CLASSES)
    assert [i.label for i in listed.images if i.split == "test"] == ["bird", "automobile", "airplane", "bird"]
    encoded = pq.read_table(target / "test-00000-of-00001.parquet")["img"][0].as_py()["bytes"]
    with Image.open(io.BytesIO(encoded)) as image:
        pixels = np.asarray(image)
    original = pickle.loads((web[0] / "cifar-10-batches-py" / "test_batch").read_bytes())["data"]  # noqa: S301
    assert (pixels == original[0].reshape(3, 32, 32).transpose(1, 2, 0)).all()
    assert {p.name for p in target.parent.iterdir()} <= {"cifar10", ".downloads"}


def test_an_archive_with_another_checksum_is_refused(tmp_path: Path, web: tuple[Path, str]) -> None:
    dataset, _ = fake_cifar10(*web)
    with pytest.raises(DamagedArtefact, match="sha256"):
        datasets.download_cifar10(tmp_path / "data" / "cifar10", silent, dataset, "0" * 64)
    assert not (tmp_path / "data" / "cifar10").exists()


def test_without_a_connection_the_error_names_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreachable:
        url = f"http://127.0.0.1:{any_free()}/cifar.tar.gz"
        filename = "cifar.tar.gz"

    monkeypatch.setattr(datasets, "_torchvision_cifar10", lambda: Unreachable)
    with pytest.raises(Unavailable) as refused:
        datasets.ensure_dataset("cifar10", tmp_path / "mine", tmp_path / "downloads", silent)
    for text in (str(tmp_path / "mine"), str(tmp_path / "downloads"), Unreachable.url):
        assert text in str(refused.value)


def test_what_is_there_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine" / "cifar10").mkdir(parents=True)
    for split in ("train", "test"):
        (tmp_path / "mine" / "cifar10" / f"{split}-00000-of-00001.parquet").touch()
    assert datasets.ensure_dataset("cifar10", tmp_path / "mine", tmp_path / "other", silent) == tmp_path / "mine"


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "precious.png").touch()
    with pytest.raises(Unavailable, match="left alone"):
        datasets.ensure_dataset("digits", None, tmp_path, silent)
    assert [p.name for p in (tmp_path / "digits").iterdir()] == ["precious.png"]


def test_digits_are_1400_and_397_and_always_the_same(tmp_path: Path) -> None:
    for run in ("one", "two"):
        assert datasets.ensure_dataset("digits", None, tmp_path / run, silent) == tmp_path / run
    tables = {s: pq.read_table(tmp_path / "one" / "digits" / f"{s}-00000-of-00001.parquet") for s in ("train", "test")}
    assert {split: table.num_rows for split, table in tables.items()} == {"train": 1_400, "test": 397}
    assert set(tables["test"]["label"].to_pylist()) == set(range(10))
    assert image_column(tables["train"].schema) == "img"
    again = pq.read_table(tmp_path / "two" / "digits" / "train-00000-of-00001.parquet")
    assert again.equals(tables["train"])


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="file"):
        datasets.ensure_dataset("digits", None, tmp_path / "file", silent)


def test_the_command_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert datasets.main(["digits", "--download-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path)
