"""Watching a campaign from the terminal: bars for the long phases, one line a round."""

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from services.trainer.campaign import AT_REST, Campaign, Round
from services.trainer.campaign_store import CampaignStore

_LOOK_EVERY_S = 0.2
_NO_WORKER_AFTER_S = 15.0

_PHASES = {
    "index": "listing images",
    "check": "checking images",
    "embed": "embedding images",
    "score": "scoring the pool",
    "pick": "picking the batch",
    "request": "asking the oracle",
    "label": "taking in labels",
    "fit": "fitting the head",
    "build": "building the network",
    "read": "reading images",
    "train": "training the network",
    "evaluate": "evaluating",
    "publish": "publishing",
    "export": "exporting to ONNX",
    "variants": "comparing faster variants",
    "parity": "checking the exported graph",
    "save": "saving",
    "report": "writing the report",
}


def phase_in_words(phase: str) -> str:
    """As people read it; itself where there are no words for it."""
    return _PHASES.get(phase, phase)


class _Rate(ProgressColumn):
    """Steps a second, as measured lately."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "", style="progress.data.speed")


def progress_bars(console: Console) -> Progress:
    """Bars with count, rate and time left, for everything long that the trainer's commands do."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


def follow(store: CampaignStore, name: str, console: Console, say: Callable[[str], None]) -> Campaign:
    """Show the campaign until it is at rest; gives it as it ended."""
    started = time.monotonic()
    told: set[int] = set()
    warned = False
    with progress_bars(console) as bars:
        shown: tuple[TaskID, int, str] | None = None
        while True:
            campaign = store.campaign(name)
            for round_no in store.finished_rounds(name):
                if round_no not in told:
                    told.add(round_no)
                    say(round_line(store.round(name, round_no), campaign.config.last_round))
            shown = _show_phase(store, name, bars, shown)
            if campaign.state in AT_REST:
                return campaign
            if shown is None and not warned and time.monotonic() - started > _NO_WORKER_AFTER_S:
                warned = True
                say("[yellow]No worker has taken this campaign yet; start one with[/] al-trainer worker")
            time.sleep(_LOOK_EVERY_S)


def _show_phase(
    store: CampaignStore, name: str, bars: Progress, shown: tuple[TaskID, int, str] | None
) -> tuple[TaskID, int, str] | None:
    progress = store.progress(name)
    if progress is None:
        return shown
    if shown is None or shown[1:] != (progress.round_no, progress.phase):
        if shown is not None:
            bars.remove_task(shown[0])
        shown = bars.add_task("", total=progress.total or None), progress.round_no, progress.phase
    text = f"round {progress.round_no}: {phase_in_words(progress.phase)}"
    bars.update(
        shown[0],
        description=f"{text} ({progress.detail})" if progress.detail else text,
        completed=progress.done,
        total=progress.total or None,
    )
    return shown


def round_line(done: Round, last_round: int) -> str:
    """One line about a finished round."""
    labels, seconds = done.report["labels"], sum(done.seconds.values())
    begin = f"round {done.round_no}/{last_round}  v{done.version}"
    test = done.report["metrics"].get("test")
    if test is None:
        return f"{begin}  the backbone, published for scoring  ({seconds:.1f} s)"
    return (
        f"{begin}  {labels} labels by {done.strategy}  accuracy {100 * test['accuracy']:.1f}%  ECE {test['ece']:.3f}  "
        f"{'promoted' if done.promoted else '[yellow]not promoted[/]'}  ({seconds:.1f} s)"
    )
