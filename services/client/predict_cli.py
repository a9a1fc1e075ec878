"""`al-predict IMAGE_OR_FOLDER...`: what does the served model say about these files?"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from services.client.channel import MAX_MESSAGE_BYTES
from services.client.client import QuerentClient
from services.client.messages import DEFAULT_ADDRESS, Prediction, Predictions
from services.common.access import Access
from services.common.errors import BadRequest, QuerentError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"}
_IMAGES_A_CALL = 32
_BYTES_A_CALL = 16 * 1024 * 1024
_BAR_FROM = 33  # one call's worth of images needs no bar


@dataclass(frozen=True)
class Options:
    model: str
    version: int
    top: int
    acquisition: str


@dataclass(frozen=True)
class FileResult:
    file: Path
    prediction: Prediction | None = None
    answered_by: Predictions | None = None
    error: str = ""


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Files as given and the images below folders, each once. Raises BadRequest."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
            if not inside:
                raise BadRequest(f"no images in {path} (looked for {', '.join(sorted(_SUFFIXES))})")
            found.update(dict.fromkeys(inside))
        elif path.is_file():
            found[path] = None
        else:
            raise BadRequest(f"{path}: no such file or folder")
    return list(found)


def predict_files(client: QuerentClient, files: Sequence[Path], options: Options) -> Iterator[FileResult]:
    """One result a file, in order. A file that cannot be used takes nothing from the others."""
    batch: list[tuple[Path, bytes]] = []
    size = 0
    for file in files:
        try:
            content = _read(file)
        except (OSError, BadRequest) as error:
            yield from _predict(client, batch, options)
            batch, size = [], 0
            yield FileResult(file, error=getattr(error, "strerror", None) or str(error))
            continue
        if batch and (len(batch) == _IMAGES_A_CALL or size + len(content) > _BYTES_A_CALL):
            yield from _predict(client, batch, options)
            batch, size = [], 0
        batch.append((file, content))
        size += len(content)
    yield from _predict(client, batch, options)


def _read(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MAX_MESSAGE_BYTES - 1024:
        raise BadRequest(f"the file has {size} bytes; the limit is {MAX_MESSAGE_BYTES - 1024}")
    return file.read_bytes()


def _predict(client: QuerentClient, batch: Sequence[tuple[Path, bytes]], options: Options) -> Iterator[FileResult]:
    if not batch:
        return
    try:
        answer = client.predict(
            [content for _, content in batch], options.model, options.version, options.top, options.acquisition
        )
    except BadRequest as error:
        if not str(error).startswith("image "):
            raise  # about the request, not about one of its images
        if len(batch) == 1:
            yield FileResult(batch[0][0], error=str(error).removeprefix("image 0: "))
            return
        # One image spoils its request: ask for each alone.
        for one in batch:
            yield from _predict(client, [one], options)
        return
    for (file, _), prediction in zip(batch, answer.predictions, strict=True):
        yield FileResult(file, prediction, answer)


def as_record(result: FileResult) -> dict[str, object]:
    """What --json prints for a file."""
    if result.prediction is None or result.answered_by is None:
        return {"file": str(result.file), "error": result.error}
    record: dict[str, object] = {
        "file": str(result.file),
        "classes": [{"label": c.label, "probability": c.probability} for c in result.prediction.classes],
        "model": result.answered_by.model,
        "version": result.answered_by.version,
        "round": result.answered_by.round,
    }
    if result.prediction.uncertainty is not None:
        record["uncertainty"] = result.prediction.uncertainty
    return record


def as_table(results: Sequence[FileResult], acquisition: str) -> Table:
    """A row for each class of each file that was predicted."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("file", overflow="fold")
    table.add_column("class")
    table.add_column("probability")
    if acquisition:
        table.add_column(acquisition)
    table.add_column("answered by")
    for result in results:
        if result.prediction is None or result.answered_by is None:
            continue
        for place, guess in enumerate(result.prediction.classes):
            cells = [str(result.file) if place == 0 else "", guess.label, f"{guess.probability:.1%}"]
            if acquisition:
                cells.append(f"{result.prediction.uncertainty:.3f}" if place == 0 else "")
            by = result.answered_by
            cells.append(f"{by.model} v{by.version}" if place == 0 else "")
            table.add_row(*cells)
    return table


app = typer.Typer(add_completion=False)


@app.command()
def predict(
    paths: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_FOLDER", help="Image files or folders.")],
    address: Annotated[str, typer.Option(help="host:port of the inference service.")] = DEFAULT_ADDRESS,
    model: Annotated[str, typer.Option(help="Campaign whose model answers; needed when several are served.")] = "",
    version: Annotated[int, typer.Option(min=0, help="A published version; 0: the promoted one.")] = 0,
    top: Annotated[int, typer.Option(min=0, help="Classes to show for each image; 0: all.")] = 3,
    acquisition: Annotated[
        str, typer.Option(help="Show the uncertainty too: margin, entropy or least_confidence.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one list for all files.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each call.")] = 30.0,
    tls: Annotated[
        bool, typer.Option("--tls", help="TLS with the system's authorities; --ca-file implies it.")
    ] = False,
    ca_file: Annotated[
        Path | None, typer.Option(envvar="QUERENT_CA_FILE", help="Authority that signed the server's certificate.")
    ] = None,
    cert_file: Annotated[
        Path | None, typer.Option(envvar="QUERENT_CERT_FILE", help="Own certificate, where the server asks for one.")
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(envvar="QUERENT_KEY_FILE", help="The key of the own certificate.")
    ] = None,
    server_name: Annotated[str, typer.Option(help="Name in the server's certificate, if not the address's.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(envvar="QUERENT_TOKEN_FILE", help="File whose first line is the bearer token.")
    ] = None,
    token: Annotated[
        str,
        typer.Option(envvar="QUERENT_TOKEN", show_default=False, help="Bearer token; better not as an argument."),
    ] = "",
) -> None:
    """Predict the classes of images with the served model.

    Examples:

      al-predict cat.jpg

      al-predict photos/ --top 1 --acquisition margin

      al-predict cat.jpg --address gpu.example:8001 --ca-file ca.pem --token-file token

      al-predict photos/*.png --model cifar10-demo-1 --version 3 --json > answers.json

    Exit code 1 when a file could not be predicted; the others are still predicted.
    """
    errors = Console(stderr=True, highlight=False)
    results: list[FileResult] = []
    failure = ""
    try:
        files = find_images(paths)
        access = Access(tls, ca_file, cert_file, key_file, server_name, token, token_file)
        with QuerentClient(address, timeout, access=access) as client:
            for result in _with_bar(client, files, Options(model, version, top, acquisition), errors):
                results.append(result)
    except QuerentError as error:
        failure = str(error)
        if not results:
            _fail(errors, failure)
    if as_json:
        print(json.dumps([as_record(result) for result in results], indent=2))
    elif any(result.prediction for result in results):
        Console().print(as_table(results, acquisition))
    broken = [result for result in results if result.error]
    for result in broken:
        errors.print(f"{result.file}: {result.error}", markup=False, soft_wrap=True)
    if failure:
        _fail(errors, f"{len(files) - len(results)} files were not asked about: {failure}")
    if broken:
        raise typer.Exit(1)


def _with_bar(client: QuerentClient, files: Sequence[Path], options: Options, console: Console) -> Iterator[FileResult]:
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=len(files) < _BAR_FROM) as progress:
        bar = progress.add_task("predict", total=len(files))
        for result in predict_files(client, files, options):
            progress.advance(bar)
            yield result


def _fail(console: Console, message: str) -> NoReturn:
    console.print(f"al-predict: {message}", markup=False, soft_wrap=True)
    raise typer.Exit(1)


def main() -> None:
    app()


if __name__ == "__main__":
    main()
