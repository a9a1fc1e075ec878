"""make bench-al, the cost half: one query of each strategy beside scikit-activeml's and modAL's, and of a million.

50,000 x 1,280 made-up float32 embeddings, 200 labels, a batch of 100. Each measurement is a process of its own on one
thread; ours and the peers take turns, medians of three, once for what takes longer than 30 s. Ours: the head over the
whole pool, the acquisition function and the pick, the first one of a fresh worker. Peers: `query`, with a fitted head.
Every head has predicted 1,024 rows before the clock starts. A peer that needs more than 12 GB or 240 s does not finish.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.trainer.strategies import STRATEGIES
from tests.bench.peers import PEERS
from tests.bench.strategies import in_a_process

SIZE, BATCH = 1280, 100
ROWS, FEWER_ROWS = 50_000, 10_000
SLOW_S, LIMIT_S, LIMIT_GB = 30.0, 240.0, 12.0
# CPU seconds over those of the fastest peer that finishes.
UNCERTAINTY, COVERAGE, CLUSTERS = 0.6, 0.2, 0.1
GOALS = {"k_center": COVERAGE, "badge": CLUSTERS, "typiclust": CLUSTERS, "prob_cover": CLUSTERS}
MEMORY_GOAL_MB = 1000.0
# Of the trainer and the service together, wall seconds.
MILLION_GOALS = {"margin": 3.0, "entropy": 3.0, "badge": 60.0, "k_center": 60.0}
COLUMNS = ("figure", "measured", "ours_s", "fastest_peer", "peer_s", "goal", "reached", "note")


@dataclass
class Measured:
    """The repeats of one name at one number of rows."""

    name: str
    rows: int
    repeats: int = 1
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    note: str = ""

    @property
    def finished(self) -> bool:
        return bool(self.seconds) and not self.note

    @property
    def enough(self) -> bool:
        return bool(self.note) or len(self.seconds) >= self.repeats or max(self.seconds, default=0.0) > SLOW_S

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    def again(self) -> None:
        found = in_a_process(self.name, self.rows, SIZE, BATCH, LIMIT_S, LIMIT_GB)
        self.note = str(found.get("note", ""))
        if not self.note:
            self.seconds.append(float(found.get("scores_s", 0.0)) + float(found["pick_s"]))
            self.peak_mb = max(self.peak_mb, float(found["peak_mb"]))


def row(figure: str, measured: float | str, goal: float | None, note: str = "", **more: object) -> dict[str, object]:
    reached = "" if goal is None or isinstance(measured, str) else "yes" if measured <= goal else "no"
    shown = round(measured, 3) if isinstance(measured, float) else measured
    return {"figure": figure, "measured": shown, "goal": "" if goal is None else f"<= {goal:g}", "reached": reached} | {
        "note": note,
        **more,
    }


def against_peers(name: str, rows: int, repeats: int) -> tuple[dict[str, object], Measured]:
    """The row of one strategy, and its own measurement."""
    ours, *peers = turns = [Measured(one, rows, repeats) for one in (name, *PEERS[name])]
    for _ in range(repeats):
        for one in turns:
            if not one.enough:
                one.again()
    figure = f"{name}, {rows:,} x {SIZE:,}: CPU / fastest peer"
    goal = GOALS.get(name, UNCERTAINTY)
    others = "; ".join(f"{p.name} {f'{p.median_s:.3g} s' if p.finished else p.note}" for p in peers)
    if not ours.finished:
        return row(figure, ours.note, goal, others), ours
    finished = [peer for peer in peers if peer.finished]
    if not finished:
        return row(figure, "no peer finishes", goal, others, ours_s=round(ours.median_s, 3)), ours
    fastest = min(finished, key=lambda peer: peer.median_s)
    seconds = {"ours_s": round(ours.median_s, 3), "fastest_peer": fastest.name, "peer_s": round(fastest.median_s, 3)}
    return row(figure, ours.median_s / fastest.median_s, goal, others, **seconds), ours


def memory(known: dict[str, Measured]) -> dict[str, object]:
    """The most that any of our strategies needs above embeddings and scores."""
    for name in track(STRATEGIES, "memory", transient=True):
        if name not in known:
            known[name] = Measured(name, ROWS)
            known[name].again()
    figure = f"peak memory of any strategy, {ROWS:,} x {SIZE:,}: MB"
    if failed := [one for one in known.values() if not one.finished]:
        return row(figure, f"{failed[0].name}: {failed[0].note}", MEMORY_GOAL_MB)
    most = sorted(known.values(), key=lambda one: -one.peak_mb)[:3]
    told = ", ".join(f"{one.name} {one.peak_mb:.0f}" for one in most)
    return row(figure, most[0].peak_mb, MEMORY_GOAL_MB, f"the three largest: {told}")


def million(count: int) -> Iterator[dict[str, object]]:
    command = [sys.executable, "-m", "tests.bench.query_million", "--rows", str(count), *MILLION_GOALS]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    figure = f"{count:,} x {SIZE:,}, batch 1,000, 2 cores"
    if done.returncode:
        yield row(f"{figure}: s", "no: it failed", None)
        return
    found = json.loads(done.stdout.splitlines()[-1])
    if "note" in found:
        yield row(f"{figure}: s", f"no: {found['note']}", None)
        return
    for name, goal in MILLION_GOALS.items():
        it = found[name]
        note = f"scores {it['scores_s']:.2f} s, pick {it['pick_s']:.2f} s; trainer's peak {it['peak_mb']:.0f} MB above"
        yield row(f"{name}, {figure}: wall s", it["scores_s"] + it["pick_s"], goal, note)
    yield row(f"first call of a fresh service, {figure}: wall s", found["first_s"], None, "verifies every shard")


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m tests.bench.al_query --only margin k_center --million 0",
    )
    arguments.add_argument("--only", nargs="*", default=list(PEERS), choices=list(PEERS), help="strategies, by name")
    arguments.add_argument("--repeats", type=int, default=3, help="turns of ours and the peers (3)")
    arguments.add_argument("--million", type=int, default=1_000_000, help="rows of the large pool; 0 leaves it out")
    arguments.add_argument("--csv", type=Path, help="write the table to this file")
    given = arguments.parse_args()
    rows, known = [], {}
    for name in track(given.only, "beside peers", transient=True):
        found, known[name] = against_peers(name, ROWS, given.repeats)
        rows.append(found)
        if found["measured"] == "no peer finishes":
            rows.append(against_peers(name, FEWER_ROWS, given.repeats)[0])
    if set(given.only) == set(PEERS):
        rows.append(memory(known))
    if given.million:
        rows.extend(million(given.million))
    table = Table(*COLUMNS, title="bench-al: what a query costs")
    for one in rows:
        table.add_row(*(str(one.get(column, "")) for column in COLUMNS))
    Console().print(table)
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
