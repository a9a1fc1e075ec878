"""`make demo`: one campaign from raw images to a served model, with everything it needs started and stopped."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.client.client import QuerentClient
from services.client.messages import Predictions
from services.common.errors import NotFound
from services.common.registry import Registry
from services.demo import data, scrape
from services.demo.ports import choose
from services.demo.processes import ProcessFailed, Supervisor
from services.demo.redis import start_redis
from services.demo.samples import TestImage, save_test_images
from services.demo.services import (
    INFERENCE_METRICS_PORT,
    INFERENCE_PORT,
    WORKER_METRICS_PORT,
    Ports,
    start_inference,
    start_worker,
    tool,
)
from services.demo.state import State

_SAVED_IMAGES = 10
_PREDICTED_IMAGES = 5
_PROMOTION_DEADLINE_S = 30.0


def run_demo(config: Path | None, state: State, console: Console) -> None:
    """Raises QuerentError with what to do about it; whatever was started has ended then."""
    chosen = data.choose(config, state, os.environ, console.print)
    ports = Ports(*choose((INFERENCE_PORT, INFERENCE_METRICS_PORT, WORKER_METRICS_PORT)))
    env = {**state.environment(os.environ), **ports.environment(), "QUERENT_DATA_DIR": str(chosen.data_dir)}
    with Supervisor(state.logs) as supervisor:
        try:
            campaign = _run_campaign(supervisor, chosen.config, state, env, ports, console)
            _show_results(supervisor, campaign, chosen.data_dir, state, env, ports, console)
        finally:
            _pause_if_running(supervisor, state, env, console)
            console.print("stopping the worker, the inference service and Redis", style="dim")
    _say_what_next(campaign, state, console)


def _run_campaign(
    supervisor: Supervisor, config: Path, state: State, env: dict[str, str], ports: Ports, console: Console
) -> str:
    console.print(f"campaign: {config}", highlight=False)
    console.print(f"images below {env['QUERENT_DATA_DIR']}, logs in {state.logs}/", highlight=False, soft_wrap=True)
    env["TRAINER_REDIS_URL"] = start_redis(supervisor, state.root, os.environ, console.print)
    # A demo that was killed outright may have left its campaign running: the new worker must not go on with it.
    _pause_if_running(supervisor, state, env, console)
    with console.status("starting the inference service"):
        start_inference(supervisor, env, ports)
    console.print(f"inference: gRPC on {ports.address}, metrics on port {ports.inference_metrics}", highlight=False)
    with console.status("starting the worker"):
        start_worker(supervisor, env, ports)
    console.print(f"worker: ready, metrics on port {ports.worker_metrics}\n", highlight=False)
    command = [tool("al-trainer"), "run", str(config), "--follow", "--name-file", str(state.running_campaign)]
    child = supervisor.start("al-trainer run", command, env, on_terminal=True)
    code = supervisor.wait_end(child)
    if code != 0:
        raise ProcessFailed(f"the campaign did not finish (exit code {code}); {state.logs}/worker.log tells more")
    campaign = state.running_campaign.read_text().strip()
    state.running_campaign.unlink()
    return campaign


def _pause_if_running(supervisor: Supervisor, state: State, env: Mapping[str, str], console: Console) -> None:
    """Pause the campaign of a demo that did not come to its end, so that no later worker goes on with it."""
    if not state.running_campaign.is_file():
        return
    campaign = state.running_campaign.read_text().strip()
    code = supervisor.run("pause", [tool("al-trainer"), "pause", campaign], env, timeout_s=60)
    if code == 0:
        console.print(
            f"{campaign} is paused; with inference and a worker running, al-trainer resume {campaign} goes on with it",
            highlight=False,
        )
    state.running_campaign.unlink()


def _show_results(
    supervisor: Supervisor,
    campaign: str,
    data_dir: Path,
    state: State,
    env: Mapping[str, str],
    ports: Ports,
    console: Console,
) -> None:
    if supervisor.run("report", [tool("al-trainer"), "report", campaign], env, timeout_s=120) != 0:
        raise ProcessFailed(f"the report could not be written; {state.logs}/report.log tells why")
    try:
        images = save_test_images(state, campaign, data_dir, _SAVED_IMAGES)[:_PREDICTED_IMAGES]
    except NotFound as error:
        console.print(f"[yellow]no predictions: {escape(str(error))}[/]")
    else:
        version = _version_to_ask(state, campaign, console)
        with QuerentClient(ports.address, timeout_s=_PROMOTION_DEADLINE_S) as client:
            answer = client.predict([image.path for image in images], model=campaign, version=version, top=1)
        console.print(f"\nFive test images asked of {ports.address} (querent.v1.PredictionService/Predict):")
        console.print(predictions_table(images, answer))
    inference = scrape.key_lines(ports.inference_metrics, scrape.INFERENCE_METRICS, campaign)
    trainer = scrape.key_lines(ports.worker_metrics, scrape.TRAINER_METRICS, campaign)
    for port, lines in ((ports.inference_metrics, inference), (ports.worker_metrics, trainer)):
        console.print(f"\nhttp://127.0.0.1:{port}/metrics says, among other things:", highlight=False)
        for line in lines:
            console.print(f"  {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print()


def _version_to_ask(state: State, campaign: str, console: Console) -> int:
    """0, the promoted one; the newest where a campaign promotes by hand."""
    registry = Registry(state.registry)
    if registry.current(campaign) is not None:
        return 0
    newest = registry.versions(campaign)[-1]
    console.print(f"nothing is promoted; do it with: al-trainer models promote {campaign} {newest}", highlight=False)
    return newest


def predictions_table(images: Sequence[TestImage], answer: Predictions) -> Table:
    """Class, probability and the version that answered, beside the truth."""
    table = Table("image", "true class", "predicted", "probability", "answered by", box=box.SIMPLE_HEAD)
    for image, prediction in zip(images, answer.predictions, strict=True):
        right = prediction.label == image.true_class
        table.add_row(
            image.path.name,
            image.true_class or "",
            prediction.label,
            f"{100 * prediction.probability:.1f}%",
            f"{answer.model} v{answer.version}",
            style="" if right or image.true_class is None else "yellow",
        )
    return table


def _say_what_next(campaign: str, state: State, console: Console) -> None:
    report = state.reports / campaign / "report.html"
    console.print(f"[bold]report:[/] {report}", highlight=False)
    console.print("[bold]next:[/]")
    for command in ("make serve", f".venv/bin/al-predict {state.samples}/ --model {campaign}"):
        console.print(f"  {command}", highlight=False)
    console.print("al-predict asks the service that make serve starts, from another terminal", style="dim")
