"""al-predict against a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.client.predict_cli import app
from tests.authorities import Authority
from tests.integration.inference.harness import serving
from tests.tiny_models import Folders, TinyModel, colours, png, publish


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for i, colour in enumerate(colours(5)):
        (folder / f"{i}.png").write_bytes(png(colour))
    (folder / "deeper" / "6.PNG").write_bytes(png())
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    folders = Folders(tmp_path)
    publish(folders.registry, TinyModel(), promote=True)
    async with serving(folders) as served:
        yield served.address


async def al_predict(*arguments: str | Path) -> Result:
    return await asyncio.to_thread(
        CliRunner().invoke, app, [str(a) for a in arguments], env={"COLUMNS": "200", "TERM": "dumb"}
    )


async def test_files_and_folders_become_a_table(address: str, photos: Path) -> None:
    result = await al_predict(photos, "--address", address, "--top", "2", "--acquisition", "margin")
    assert result.exit_code == 0, result.output
    assert "tiny v1" in result.stdout
    assert "margin" in result.stdout
    assert result.stdout.count(".png") + result.stdout.count(".PNG") == 6
    assert "notes.txt" not in result.stdout


async def test_json_has_a_record_for_each_file(address: str, photos: Path) -> None:
    result = await al_predict(photos / "0.png", photos / "1.png", "--address", address, "--json", "--top", "0")
    records = json.loads(result.stdout)
    assert [Path(r["file"]).name for r in records] == ["0.png", "1.png"]
    assert all(len(r["classes"]) == 3 and r["version"] == 1 and r["model"] == "tiny" for r in records)
    assert all("uncertainty" not in r for r in records)


async def test_a_broken_file_is_named_and_the_others_are_predicted(address: str, photos: Path) -> None:
    (photos / "2.png").write_bytes(b"broken")
    (photos / "3.png").write_bytes(b"")
    result = await al_predict(photos, "--address", address)
    assert result.exit_code == 1
    assert "2.png: not an image" in result.stderr
    assert "3.png: the image is empty" in result.stderr
    assert result.stdout.count("tiny v1") == 4
    result = await al_predict(photos, "--address", address, "--json")
    assert [Path(r["file"]).name for r in json.loads(result.stdout) if "error" in r] == ["2.png", "3.png"]


async def test_many_files_are_all_answered(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i, colour in enumerate(colours(70)):
        (folder / f"{i:03}.png").write_bytes(png(colour))
    result = await al_predict(folder, "--address", address, "--json")
    assert [Path(r["file"]).stem for r in json.loads(result.stdout)] == [f"{i:03}" for i in range(70)]


async def test_missing_and_empty_folders_are_clear(tmp_path: Path) -> None:
    result = await al_predict(tmp_path / "nowhere")
    assert (result.exit_code, "no such file or folder" in result.stderr) == (1, True)
    (tmp_path / "empty").mkdir()
    result = await al_predict(tmp_path / "empty")
    assert (result.exit_code, "no images in" in result.stderr) == (1, True)


@pytest.mark.slow
async def test_an_unreachable_server_is_clear(photos: Path) -> None:
    result = await al_predict(photos, "--address", "127.0.0.1:1", "--timeout", "10")
    assert result.exit_code == 1
    assert "the inference service at 127.0.0.1:1 is not available" in result.stderr


@pytest.mark.slow  # it is retried with back-off
async def test_nothing_promoted_yet_is_clear(tmp_path: Path, photos: Path) -> None:
    async with serving(Folders(tmp_path)) as served:
        result = await al_predict(photos, "--address", served.address)
    assert (result.exit_code, "no model promoted yet" in result.stderr) == (1, True)


async def test_a_mistake_in_the_request_is_told_once(address: str, photos: Path) -> None:
    result = await al_predict(photos, "--address", address, "--acquisition", "margni")
    assert result.exit_code == 1
    assert result.stderr.count("did you mean 'margin'") == 1
    result = await al_predict(photos, "--address", address, "--model", "tinny")
    assert "did you mean 'tiny'" in result.stderr


async def test_tls_and_a_token_are_options_or_come_from_the_environment(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, authority = Folders(tmp_path), Authority(tmp_path / "authority")
    publish(folders.registry, TinyModel(), promote=True)
    cert, key = authority.issue()
    (tmp_path / "token").write_text("secret\n")
    async with serving(folders, tls_cert_file=cert, tls_key_file=key, predict_token="secret") as served:
        asked = (photos / "0.png", "--address", served.address, "--ca-file", authority.ca_file)
        result = await al_predict(*asked, "--token-file", tmp_path / "token")
        assert result.exit_code == 0, result.output
        result = await al_predict(*asked)
        assert (result.exit_code, "a valid token is needed" in result.stderr) == (1, True)
        monkeypatch.setenv("QUERENT_CA_FILE", str(authority.ca_file))
        monkeypatch.setenv("QUERENT_TOKEN", "secret")
        assert (await al_predict(*asked[:3])).exit_code == 0
        result = await al_predict("--help")
        assert "QUERENT_TOKEN" in result.output
        assert "secret" not in result.output
    result = await al_predict(photos / "0.png", "--ca-file", tmp_path / "nowhere.pem")
    assert (result.exit_code, "nowhere.pem: No such file" in result.stderr) == (1, True)


async def test_help_has_examples() -> None:
    result = await al_predict("--help")
    assert "al-predict photos/ --top 1" in result.output
