"""A comparison's files: every run as CSV and parquet, the pictures, and the page."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table

from services.common.files import write_atomically
from services.trainer.comparison import plots
from services.trainer.comparison.cells import CellResult
from services.trainer.comparison.config import ComparisonConfig
from services.trainer.comparison.page import render_page
from services.trainer.comparison.summary import Summary, summarise


def write_comparison(folder: Path, config: ComparisonConfig, results: Sequence[CellResult]) -> list[Summary]:
    """Write or replace every file; gives what the page says."""
    summaries = summarise(results, config.strategies)
    pictures = [plots.draw(s) for s in summaries]
    rows = run_rows(results)
    files = {"runs.csv": csv_of(rows), "runs.parquet": parquet_of(rows), "summary.csv": csv_of(summary_rows(summaries))}
    for summary, drawn in zip(summaries, pictures, strict=True):
        for name, png in drawn.light.items():
            files[f"{summary.backbone}-{summary.head}-{name}.png"] = png
    # The page comes last: whoever sees it finds the rest beside it.
    missing = len(config.cells()) - len(results)
    files["comparison.html"] = render_page(config, summaries, pictures, missing).encode()
    for name, content in files.items():
        write_atomically(folder / name, content)
    return summaries


def run_rows(results: Sequence[CellResult]) -> list[dict[str, Any]]:
    """One row for each budget of each run, ceilings too."""
    return [
        {
            "backbone": r.cell.backbone,
            "head": r.cell.head,
            "strategy": r.cell.strategy,
            "seed": r.cell.seed,
            **asdict(point),
        }
        for r in results
        for point in r.points
    ]


def summary_rows(summaries: Sequence[Summary]) -> list[dict[str, Any]]:
    """One row for each strategy of each backbone and head; shares, not points."""
    return [
        {
            "backbone": s.backbone,
            "head": s.head,
            "strategy": f.strategy,
            "seeds": len(s.seeds),
            "aubc": float(f.aubc.mean()),
            "aubc_less_random": f.aubc_gain.mean,
            "aubc_low": f.aubc_gain.low,
            "aubc_high": f.aubc_gain.high,
            "seeds_won": f.aubc_gain.wins,
            "final_accuracy": float(f.accuracy[:, -1].mean()),
            "final_less_random": f.final_gain.mean,
            "final_low": f.final_gain.low,
            "final_high": f.final_gain.high,
            "labels_to_reach_random": f.labels_to_reach,
            "final_macro_f1": f.final_macro_f1,
            "final_worst_class_recall": f.final_worst_recall,
            "final_ece": f.final_ece,
            "beaten": float(s.penalties[:, place].sum() / max(len(s.found) - 1, 1)),
            "query_cpu_seconds": f.query_cpu_seconds,
            "slowest_query_cpu_seconds": f.slowest_query,
            "query_peak_mb": f.query_peak_mb,
            "ceiling_accuracy": None if s.ceiling is None else s.ceiling[0],
        }
        for s in summaries
        for place, f in enumerate(s.found)
    ]


def summary_table(summary: Summary) -> Table:
    """For the terminal: 80 columns."""
    budget = int(summary.labels[-1])
    out = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{summary.title}, {len(summary.seeds)} paired seeds",
        title_justify="left",
        caption="points of test accuracy; interval: 95%, paired by seed",
        caption_justify="left",
    )
    out.add_column("strategy", no_wrap=True)
    for title in ("AUBC", "less\nrandom", "95%\ninterval", f"at\n{budget:,}", "reaches\nrandom at", "query\nCPU s"):
        out.add_column(title, justify="right", vertical="bottom")
    for f in sorted(summary.found, key=lambda f: -f.aubc.mean()):
        gain = f.aubc_gain
        interval = f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}" if np.isfinite(gain.low) else ""
        compared = ["", ""] if f is summary.baseline else [f"{100 * gain.mean:+.2f}", interval]
        reached = "-" if f.labels_to_reach is None else f"{f.labels_to_reach:,}"
        accuracy = f"{100 * f.accuracy[:, -1].mean():.1f}%"
        cells = [f.strategy, f"{100 * f.aubc.mean():.2f}", *compared, accuracy, reached, f"{f.query_cpu_seconds:.3f}"]
        out.add_row(*cells, style="bold" if gain.resolved else "")
    return out


def csv_of(rows: Sequence[dict[str, Any]]) -> bytes:
    """With the keys of the first row as its head."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue().encode()


def parquet_of(rows: Sequence[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()
