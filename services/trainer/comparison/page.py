"""comparison.html: one file that needs nothing else, so that it can be sent and read offline."""

from collections.abc import Sequence
from html import escape

import numpy as np
import yaml

from services.trainer.comparison.config import ComparisonConfig
from services.trainer.comparison.statistics import Paired
from services.trainer.comparison.summary import Found, Summary
from services.trainer.report.parts import STYLE, page_template, table
from services.trainer.report.pictures import PICTURE_STYLE, Pictures

PAGE = page_template(
    "$name: comparison",
    """\
<h1>$name</h1>
<p class="muted">$subtitle</p>
$groups
<h2>How this was measured</h2>
<p>Every strategy of a seed begins with the same labels, and uses the same head, folds and seed for every fit. The test
samples are reported on and decide nothing. A share of $random_share of each batch is drawn at random, as in a campaign;
temperatures come from those rows. All differences are taken seed by seed.</p>
<p><b>AUBC</b> is the area under the budget curve: (1 / (b<sub>T</sub> − b<sub>0</sub>)) Σ<sub>t</sub>
½ (a<sub>t</sub> + a<sub>t+1</sub>)(b<sub>t+1</sub> − b<sub>t</sub>), an average accuracy over the budget. <b>Less
random</b> is the mean of its paired differences d with the 95% interval mean(d) ± t<sub>.975, n−1</sub> sd(d) / √n;
figures in bold are those whose interval leaves zero out. With several strategies some intervals leave zero out by
chance: an interval is not corrected for how many there are.</p>
<p><b>Reaches random at</b> is the smallest measured budget at which the mean curve is at random's final mean accuracy.
<b>Penalties</b>: a row beats a column at a budget when √n mean(d) / sd(d) exceeds t<sub>.975, n−1</sub>; shares of the
budgets after the first, which all share. Descriptive only, and not corrected either.</p>
<p><b>Query</b>: CPU seconds of all threads for scoring the pool and picking the batch, mean over the rounds after the
first and the slowest one; memory is the largest resident size during a query above the one before it.</p>
<h2>Configuration</h2>
<div class="card"><pre>$config</pre></div>
""",
    PICTURE_STYLE,
)

_CURVES = (
    ("learning_curves", "Accuracy by labels with 95% bands"),
    ("gains", "Gain over random by labels, paired"),
    ("aubc_gains", "AUBC less random's with 95% intervals"),
)
_PENALTIES = (("penalties", "Pairwise penalty matrix"),)
_COST = (("query_cost", "CPU seconds and memory of a query"),)
# Of more strategies than this the matrix takes the page's width.
_MOST_IN_HALF_A_PAGE = 8


def render_page(
    config: ComparisonConfig, summaries: Sequence[Summary], pictures: Sequence[Pictures], missing: int
) -> str:
    """`pictures`: those of each summary. Everything that comes from outside is escaped."""
    still = f" · cells without a result yet: {missing}" if missing else ""
    return PAGE.substitute(
        style=STYLE,
        name=escape(config.name),
        subtitle=escape(
            f"{len(config.strategies)} strategies, up to {len(config.seeds)} seeds, {_budget(config)}{still}"
        ),
        random_share=f"{config.random_share:g}",
        groups="".join(group(s, p) for s, p in zip(summaries, pictures, strict=True))
        or '<p class="muted">No seed is finished for every strategy yet.</p>',
        config=escape(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()),
    )


def _budget(config: ComparisonConfig) -> str:
    return f"{config.initial.labels:,} to {config.budget:,} labels in batches of {config.batch:,}"


def group(summary: Summary, drawn: Pictures) -> str:
    """What is said of one backbone and head."""
    ceiling = ""
    if summary.ceiling is not None:
        accuracy, labels = summary.ceiling
        ceiling = f" With all {labels:,} labels the same head reaches {100 * accuracy:.1f}%."
    told = [
        f"<h2>{escape(summary.title)}</h2>",
        f'<p class="muted">{paired_seeds(summary)}.{escape(ceiling)}</p>',
        f'<div class="card dense">{found_table(summary)}</div>',
        drawn.pair(_CURVES, wide=True),
    ]
    if len(summary.found) > 1:
        is_wide = len(summary.found) > _MOST_IN_HALF_A_PAGE
        told += [
            f"<h2>{escape(summary.title)}: who beats whom</h2>{drawn.pair(_PENALTIES, wide=is_wide)}",
            f"<h2>{escape(summary.title)}: what a query costs</h2>{drawn.pair(_COST, wide=True)}",
        ]
    return "".join(told)


def paired_seeds(summary: Summary) -> str:
    return f"{len(summary.seeds)} paired seed{'s' if len(summary.seeds) > 1 else ''}"


def found_table(summary: Summary) -> str:
    """Every strategy, the best area first."""
    budget = f"{summary.labels[-1]:,}"
    head = ["strategy", "AUBC", "less random", "95%", "seeds won", f"at {budget}", "less random", "95%"]
    head += [f"reaches random's {budget} at", "worst recall", "ECE", "query s", "MB"]
    ordered = sorted(summary.found, key=lambda f: -f.aubc.mean())
    return table(head, [("", _cells(summary, f)) for f in ordered], text_columns={0})


def _cells(summary: Summary, found: Found) -> list[str]:
    is_random = found is summary.baseline
    area, last = found.aubc.mean(), found.accuracy[:, -1].mean()
    gain, final = found.aubc_gain, found.final_gain
    return [
        escape(found.strategy.replace("_", " ")),
        f"{100 * area:.2f}",
        *(["", "", ""] if is_random else [signed(gain), interval(gain), f"{gain.wins}/{gain.pairs}"]),
        f"{100 * last:.1f}%",
        *(["", ""] if is_random else [signed(final), interval(final)]),
        _reaches(summary, found),
        f"{100 * found.final_worst_recall:.1f}%",
        f"{found.final_ece:.3f}",
        f"{found.query_cpu_seconds:.3f}",
        "" if found.query_peak_mb is None else f"{found.query_peak_mb:,.0f}",
    ]


def signed(gain: Paired) -> str:
    """In points; bold when its interval leaves zero out."""
    text = f"{100 * gain.mean:+.2f}"
    return f"<b>{text}</b>" if gain.resolved else text


def interval(gain: Paired) -> str:
    """In points."""
    return f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}" if np.isfinite(gain.low) else "one seed"


def _reaches(summary: Summary, found: Found) -> str:
    if found is summary.baseline:
        return f"{summary.labels[-1]:,}"
    if found.labels_to_reach is None:
        return "not within it"
    return f"{found.labels_to_reach:,} ({-(summary.saving(found) or 0):,})"
