"""study.html: every arm, the grid search and what is missing, in one file that needs nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
import yaml

from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.grid_page import grid_section
from services.trainer.comparison.page import found_table, interval, paired_seeds, signed
from services.trainer.comparison.ranking import Ranking
from services.trainer.comparison.study import StudyConfig
from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.parts import STYLE, page_template, table
from services.trainer.report.pictures import PICTURE_STYLE, Pictures

_STYLE = """
.missing { border-left: .3rem solid var(--bad); padding: .9rem 1.1rem; margin: 1rem 0; }
.missing pre { padding: .5rem 0 0; white-space: pre-wrap; }
h2.arm { font-size: 1.35rem; margin-top: 3.2rem; }
"""

PAGE = page_template(
    "$name: study",
    """\
<h1>$name</h1>
<p class="muted">$subtitle</p>
$missing
<h2>All arms</h2>
$overview
$arms
$grid
<h2>How this was measured</h2>
<p>Every strategy of an arm and a seed begins with the same labels and uses the same learner and seed for every fit.
Classes of pool samples are read when they are bought and at no other time; the test samples report and decide nothing.
A share of $random_share of each batch is drawn at random, as in a campaign. Differences are taken seed by seed, with
95% t intervals; figures in bold are those whose interval leaves zero out, and nothing is corrected for how many there
are. Frozen backbones are embedded once by inference; a network that is trained begins anew from its initial weights in
every round, and embeds and scores the pool itself. Nothing is published.</p>
<p><b>All labels</b>: the same learner with the label of every pool sample, once. <b>AUBC</b>: area under the budget
curve, an average accuracy over the budget. Confusion matrices are of the test samples after the last round, summed over
seeds.</p>
<h2>Configuration</h2>
<div class="card"><pre>$config</pre></div>
""",
    PICTURE_STYLE + _STYLE,
)

_CURVES = (("learning_curves", "Accuracy by labels with 95% bands"),)
_AREAS = (("aubc_gains", "AUBC less random with 95% intervals"),)


@dataclass(frozen=True)
class ArmPart:
    """An arm as the page shows it."""

    name: str
    # None while no seed is finished for every strategy.
    summary: Summary | None
    pictures: Pictures
    # By what it was asked with, "all labels" too.
    confusions: Pictures
    unfinished: int = 0


@dataclass(frozen=True)
class StudyPage:
    config: StudyConfig
    arms: Sequence[ArmPart]
    missing: Mapping[str, str]
    overview: Pictures
    grid: GridConfig | None = None
    ranking: Ranking | None = None
    grid_pictures: Pictures = field(default_factory=lambda: Pictures({}, {}))


def render_study_page(page: StudyPage) -> str:
    """Everything that comes from outside is escaped."""
    config = page.config
    told = f"arms: {len(config.arms)}; strategies: {len(config.strategies)}, against random and against all labels"
    left_out = f" · without {', '.join(page.missing)}" if page.missing else ""
    summaries = [arm.summary for arm in page.arms if arm.summary is not None]
    return PAGE.substitute(
        style=STYLE,
        name=escape(config.name),
        subtitle=escape(told + left_out),
        missing="".join(_missing(name, why) for name, why in page.missing.items()),
        overview=_overview(page.overview, summaries),
        arms="".join(_arm(arm) for arm in page.arms),
        grid=""
        if page.grid is None
        else '<h2 class="arm">Grid search</h2>' + grid_section(page.grid, page.ranking, page.grid_pictures),
        random_share=f"{config.random_share:g}",
        config=escape(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()),
    )


def _missing(name: str, why: str) -> str:
    return (
        f'<div class="card missing"><b>{escape(name)} was not run:</b> its weights cannot be had here. '
        f"Everything else was.<pre>{escape(why)}</pre></div>"
    )


def _overview(drawn: Pictures, summaries: Sequence[Summary]) -> str:
    if not summaries:
        return '<p class="muted">Nothing measured yet.</p>'
    curves = drawn.pair([("overview", "Accuracy by labels of every arm")], wide=len(summaries) > 1)
    return f'{curves}<div class="card">{_overview_table(summaries)}</div>'


def _overview_table(summaries: Sequence[Summary]) -> str:
    head = ["arm", "strategy", "labels", "accuracy", "all labels", "less random, 95%", "AUBC less random, 95%"]
    rows = [("", _overview_row(s, f)) for s in summaries for f in s.found]
    return table(head, rows, text_columns={0, 1})


def _overview_row(summary: Summary, found: Found) -> list[str]:
    first = found is summary.baseline
    ceiling = "" if summary.ceiling is None or not first else f"{100 * summary.ceiling[0]:.1f}%"
    final, area = found.final_gain, found.aubc_gain
    return [
        escape(summary.backbone) if first else "",
        escape(found.strategy.replace("_", " ")),
        f"{summary.labels[-1]:,}",
        f"{100 * np.mean(found.accuracy[:, -1]):.1f}%",
        ceiling,
        *(["", ""] if first else [f"{signed(it)} ({interval(it)})" for it in (final, area)]),
    ]


def _arm(arm: ArmPart) -> str:
    unfinished = f'<p class="muted">Cells without a result yet: {arm.unfinished}.</p>' if arm.unfinished else ""
    heading = f'<h2 class="arm">{escape(arm.name)}</h2>{unfinished}'
    if arm.summary is None:
        return f'{heading}<p class="muted">No seed is finished for every strategy yet.</p>'
    summary = arm.summary
    ceiling = "" if summary.ceiling is None else f" All {summary.ceiling[1]:,} labels: {100 * summary.ceiling[0]:.1f}%."
    matrices = [(name, f"Confusion matrix of {name}: counts and shares") for name in arm.confusions.light]
    return (
        f'{heading}<p class="muted">{escape(summary.head)}, {paired_seeds(summary)}.{escape(ceiling)}</p>'
        f"{arm.pictures.pair(_CURVES, wide=True)}"
        f'<div class="card dense">{found_table(summary)}</div>'
        f"{arm.pictures.pair(_AREAS, wide=True)}"
        f"<h2>{escape(arm.name)}: confusion at the end</h2>{arm.confusions.pair(matrices, wide=True)}"
    )
