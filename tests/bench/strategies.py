"""make bench-strategies: one query of each strategy on made-up embeddings, in CPU seconds and peak memory.

50,000 x 1,280 float32 in a hundred overlapping groups, ten classes, 200 labels, a batch of 100. Each row is a process
of its own. `scores`: the head in onnxruntime and the acquisition function, in blocks of 1,024 rows as inference does it
(five members where the strategy wants a committee). `pick`: the first query of a worker; `next`: that of the following
round, when the batch is bought and what the strategy keeps is there. Memory is the largest resident size above what the
process held with embeddings and scores in memory; the embeddings that a strategy asks for are copies.

Beside them plain numpy (and scikit-learn) written down as the papers have it, and peers where they can be imported.
"""

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from services.common.acquisition import acquisition_named, member_probabilities
from services.trainer.learning import Head
from services.trainer.onnx_graph import head_graph
from services.trainer.parity import session
from services.trainer.strategies import STRATEGIES, Kept, ScoredPool
from tests.bench.peers import PEERS, Query

CLASSES, LABELLED, GROUPS = 10, 200, 100
_BLOCK = 1024


class World:
    """A pool in memory, and a head that knows a little about it."""

    def __init__(self, rows: int, size: int, members: int) -> None:
        rng = np.random.default_rng(0)
        centers = rng.standard_normal((GROUPS, size), np.float32)
        group = rng.integers(0, GROUPS, rows)
        self.points = rng.standard_normal((rows, size), np.float32)
        for first in range(0, rows, _BLOCK):  # in pieces: the peak must not be ours
            self.points[first : first + _BLOCK] += centers[group[first : first + _BLOCK]]
        self.classes = group % CLASSES
        self.place = {f"{i:08x}": i for i in range(rows)}
        self.ids = tuple(self.place)
        weights = np.stack([centers[c::CLASSES].mean(axis=0) for c in range(CLASSES)])
        noise = rng.standard_normal((members, CLASSES, size), np.float32) * 0.05
        self.head = Head(
            kind="made-up",
            mean=self.points[:LABELLED].mean(axis=0),
            scale=self.points[:LABELLED].std(axis=0),
            weights=(weights + noise) / 30,
            biases=np.zeros((members, CLASSES), np.float32),
        )
        network = session(head_graph(self.head).SerializeToString(), 1)
        if members == 1:  # as in services.inference.streaming
            self.classify = lambda rows: network.run(["probabilities"], {"embedding": rows})[0][:, None]
        else:
            self.classify = lambda rows: member_probabilities(network.run(["logits"], {"embedding": rows})[0])
        self.classify(self.points[:_BLOCK])  # as a service runs a version before it serves it

    def start(self) -> None:
        """The clock and the scales; a peer's imports and the fit of its own model come before."""
        self.held, self.started = _peak(), time.process_time()

    def scores(self, acquisition: str) -> np.ndarray:
        function = acquisition_named(acquisition)
        blocks = range(0, len(self.points), _BLOCK)
        return np.concatenate([function(self.classify(self.points[first : first + _BLOCK])) for first in blocks])

    def pool(self, labelled: list[str], scores: np.ndarray | None, kept: Kept) -> ScoredPool:
        bought = set(labelled)
        ids = tuple(i for i in self.ids if i not in bought)
        return ScoredPool(
            ids=ids,
            labelled=tuple(labelled),
            scores=None if scores is None else scores[self.rows(ids)],
            embeddings=lambda wanted: self.points[self.rows(wanted)],
            classify=self.classify,
            labelled_classes=self.classes[self.rows(labelled)],
            class_count=CLASSES,
            embedding_key="bench",
            kept=kept,
        )

    def rows(self, ids: object) -> np.ndarray:
        return np.array([self.place[i] for i in ids], np.int64)  # type: ignore[attr-defined]


# ---- what it is compared with --------------------------------------------------------------------------


def plain_margin(world: World, labelled: np.ndarray, batch: int) -> np.ndarray:
    logits = world.points @ world.head.weights[0].T.astype(np.float32)
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exp / exp.sum(axis=1, keepdims=True)
    top = np.sort(probabilities, axis=1)
    lead = top[:, -1] - top[:, -2]
    lead[labelled] = np.inf
    return np.argpartition(lead, batch)[:batch]


def plain_k_center(world: World, labelled: np.ndarray, batch: int) -> np.ndarray:
    points = world.points
    squared = np.einsum("nd,nd->n", points, points)
    distance = np.min([squared + squared[c] - 2 * (points @ points[c]) for c in labelled], axis=0)
    chosen = []
    for _ in range(batch):
        chosen.append(int(distance.argmax()))
        new = chosen[-1]
        np.minimum(distance, squared + squared[new] - 2 * (points @ points[new]), out=distance)
    return np.array(chosen)


def plain_badge(world: World, labelled: np.ndarray, batch: int) -> np.ndarray:
    """On the whole pool, factorised; with N x C x D it would need 5 GB."""
    rng = np.random.default_rng(0)
    points = world.points
    residuals = np.concatenate([world.classify(points[i : i + _BLOCK])[:, 0] for i in range(0, len(points), _BLOCK)])
    residuals[np.arange(len(points)), residuals.argmax(axis=1)] -= 1
    squared = (residuals**2).sum(axis=1) * np.einsum("nd,nd->n", points, points)
    distance, chosen = np.full(len(points), np.inf), [int(squared.argmax())]
    while len(chosen) < batch:
        new = chosen[-1]
        inner = (residuals @ residuals[new]) * (points @ points[new])
        distance = np.minimum(distance, np.maximum(squared + squared[new] - 2 * inner, 0))
        chosen.append(int(rng.choice(len(points), p=distance / distance.sum())))
    return np.array(chosen)


def plain_typiclust(world: World, labelled: np.ndarray, batch: int) -> np.ndarray:
    """scikit-learn's k-means on all dimensions, and the neighbours within each cluster."""
    from sklearn.cluster import MiniBatchKMeans

    world.start()
    count = min(len(labelled) + batch, 500)
    labels = MiniBatchKMeans(count, n_init=1, random_state=0).fit_predict(world.points)
    chosen = []
    for cluster in np.argsort(-np.bincount(labels, minlength=count))[:batch]:
        members = np.flatnonzero(labels == cluster)
        here = world.points[members]
        distances = _distances(here)
        nearest = np.sort(distances, axis=1)[:, 1:21]
        chosen.append(int(members[nearest.mean(axis=1).argmin()]))
    return np.array(chosen)


def _distances(rows: np.ndarray) -> np.ndarray:
    squared = np.einsum("nd,nd->n", rows, rows)
    return np.sqrt(np.maximum(squared[:, None] + squared - 2 * rows @ rows.T, 0))


NUMPY: dict[str, Query] = {
    "numpy margin": plain_margin,
    "numpy k_center": plain_k_center,
    "numpy badge": plain_badge,
    "scikit-learn typiclust": plain_typiclust,
}
BESIDE: dict[str, Query] = NUMPY | {name: query for peers in PEERS.values() for name, query in peers.items()}
# The other peers are in `make bench-al`.
SHOWN = [*STRATEGIES, *NUMPY, *(name for of in ("margin", "k_center", "badge", "typiclust") for name in PEERS[of])]


# ---- one measurement, in a process of its own ------------------------------------------------------------


def measure(name: str, rows: int, size: int, batch: int) -> dict[str, float | str]:
    members = 5 if name in STRATEGIES and STRATEGIES[name].needs_committee else 1
    world = World(rows, size, members)
    rng = np.random.default_rng(1)
    labelled = [world.ids[i] for i in rng.choice(rows, LABELLED, replace=False)]
    if name in BESIDE:
        world.start()
        BESIDE[name](world, world.rows(labelled), batch)
        return {"strategy": name, "pick_s": time.process_time() - world.started, "peak_mb": _peak() - world.held}
    it, kept = STRATEGIES[name], Kept()
    started = time.process_time()
    scores = None if it.acquisition is None else world.scores(it.acquisition)
    scoring = time.process_time() - started
    seconds = []
    held = _peak()
    for round_no in range(2):
        pool = world.pool(labelled, scores, kept)
        started = time.process_time()
        labelled += it.pick(pool, batch, np.random.default_rng(round_no))
        seconds.append(time.process_time() - started)
    return {
        "strategy": name,
        "scores_s": scoring,
        "pick_s": seconds[0],
        "next_pick_s": seconds[1],
        "peak_mb": _peak() - held,
    }


def _peak() -> float:
    """The largest resident size so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=50_000)
    arguments.add_argument("--size", type=int, default=1280)
    arguments.add_argument("--batch", type=int, default=100)
    arguments.add_argument("--only", nargs="*", default=SHOWN, help="strategies, by name")
    arguments.add_argument("--limit", type=int, default=300, help="seconds after which a measurement is given up")
    arguments.add_argument("--csv", type=Path, help="write the table to this file")
    arguments.add_argument("--one", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.one:
        with threadpool_limits(1):
            print(json.dumps(measure(given.one, given.rows, given.size, given.batch)))
        return
    found = [in_a_process(name, given.rows, given.size, given.batch, given.limit) for name in given.only]
    _show(found, f"one query on {given.rows:,} x {given.size:,}, batch {given.batch}; CPU seconds, one thread")
    if given.csv:
        with given.csv.open("w", newline="") as file:
            table = csv.DictWriter(file, ["strategy", "scores_s", "pick_s", "next_pick_s", "peak_mb", "note"])
            table.writeheader()
            table.writerows(_rounded(row) for row in found)


def in_a_process(
    name: str, rows: int, size: int, batch: int, limit_s: float, memory_gb: float | None = None
) -> dict[str, float | str]:
    """What `measure` says; a `note` in its place where it took too long or too much. One thread, before any import."""
    shape = ["--rows", str(rows), "--size", str(size), "--batch", str(batch)]
    command = [sys.executable, "-m", "tests.bench.strategies", "--one", name, *shape]
    bounded = [] if memory_gb is None else ["prlimit", f"--as={int(memory_gb * 2**30)}"]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        done = subprocess.run(
            [*bounded, *command], capture_output=True, text=True, timeout=limit_s, env={**os.environ, **one_thread}
        )
    except subprocess.TimeoutExpired:
        return {"strategy": name, "note": f"no: not done after {limit_s:g} s"}
    if done.returncode:
        if "MemoryError" in done.stderr or done.returncode == -9:
            return {"strategy": name, "note": "no: out of memory" + (f" at {memory_gb:g} GB" if memory_gb else "")}
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"strategy": name, "note": f"no: {last[:80]}"}
    measured: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _rounded(row: dict[str, float | str]) -> dict[str, float | str]:
    return {
        key: round(value, 1 if key == "peak_mb" else 3) if isinstance(value, float) else value
        for key, value in row.items()
    }


def _show(found: list[dict[str, float | str]], title: str) -> None:
    table = Table("strategy", "scores", "pick", "next", "peak MB", "", title=title)
    for row in found:
        cells = [_rounded(row).get(key, "") for key in ("scores_s", "pick_s", "next_pick_s", "peak_mb", "note")]
        table.add_row(str(row["strategy"]), *(str(cell) for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
