"""report.html: one file that needs nothing else, so that it can be sent and read offline."""

from collections.abc import Mapping
from html import escape
from typing import Any

import yaml

from services.trainer.report import parts
from services.trainer.report.content import CampaignReport
from services.trainer.report.pictures import PICTURE_STYLE, Pictures
from services.trainer.report.plots.confusion import is_wide
from services.trainer.report.sections import gallery, head
from services.trainer.report.sections.classes import classes_table, mix_ups_table
from services.trainer.report.sections.outlook import outlook_section
from services.trainer.report.sections.rounds import rounds_table, seconds_table, selection_table
from services.trainer.report.sections.variants import variants_section

PAGE = parts.page_template(
    "$name: campaign report",
    """\
<h1>$name</h1>
<p class="muted">$subtitle</p>
<div class="tiles">$tiles</div>
$measured
$variants
<h2>Configuration</h2>
<div class="card"><pre>$config</pre></div>
""",
)

_STYLE = """
.sticky td:first-child, .sticky th:first-child { position: sticky; left: 0; background: var(--card); }
.prose th { white-space: normal; }
.note { margin-top: .6rem; }
@media (max-width: 30rem) { main { padding: 1.4rem .8rem 3rem; } th, td { padding: .4rem .5rem; } }
@media print { details:not([open]) { display: none; } }
"""


def render_page(report: CampaignReport, drawn: Pictures, images: Mapping[str, str]) -> str:
    """The page with its pictures inside. `images`: sample id -> data URI, of what the gallery shows."""
    return PAGE.substitute(
        style=parts.STYLE + PICTURE_STYLE + gallery.STYLE + _STYLE,
        name=escape(report.name),
        subtitle=head.subtitle(report),
        tiles=head.tiles(report.rows),
        measured=_measured(report, drawn, images),
        variants=variants_section(report.variants),
        config=escape(yaml.safe_dump(_plain(report.config), sort_keys=False, allow_unicode=True).rstrip()),
    )


def _measured(report: CampaignReport, drawn: Pictures, images: Mapping[str, str]) -> str:
    asked = gallery.gallery_section(report.asked, images)
    if not report.rows:
        return f'<p class="muted note">Nothing measured yet.</p>{asked}'
    bought = [("learning_curve", "Accuracy against labels"), ("bought_classes", "Classes of what each round bought")]
    return "".join(
        [
            "<h2>What the labels bought</h2>",
            drawn.pair(bought),
            "<h2>Round by round</h2>",
            rounds_table(report.rows),
            '<p class="muted note">Accuracy, macro F1 and ECE are measured on test samples, which decide nothing. The '
            "random slice is the labelled samples that were drawn at random, each predicted by a fit that has not seen "
            "it: promotion and stopping look at those alone.</p>",
            selection_table(report.rows),
            asked,
            outlook_section(report.outlook),
            _errors(report, drawn),
            _calibration(report, drawn),
            "<h2>Where the time went</h2>",
            drawn.pair([("timing", "Seconds by phase"), ("scoring_rate", "Images scored a second")]),
            seconds_table(report.rows),
        ]
    )


def _errors(report: CampaignReport, drawn: Pictures) -> str:
    matrices = [("confusion_matrix", "Confusion matrix, shares"), ("confusion_counts", "Confusion matrix, counts")]
    told = [
        "<h2>Where it errs</h2>",
        drawn.pair(matrices, wide=is_wide(len(report.confusion))),
        mix_ups_table(report) if len(report.confusion) else "",
        f'<p class="muted note">Test images of round {report.rows[-1].round_no}, the last one. Rows are true classes, '
        "columns what was predicted; the classes below are sorted from the worst F1.</p>",
        classes_table(report),
    ]
    if report.pool_shares:
        told.append(
            '<p class="muted note">The shares of the pool are known because the oracle is simulated; they are for the '
            "reader, and no step of the campaign sees them.</p>"
        )
    return "".join(told)


def _calibration(report: CampaignReport, drawn: Pictures) -> str:
    both = [("reliability", "Reliability diagram"), ("calibration", "Calibration error against labels")]
    told = (
        "ECE, the expected calibration error, is the mean distance of accuracy and confidence over all samples, by bin."
    )
    if report.reliability is None:
        told += " The last round was evaluated before bins were kept, so there is no reliability diagram of it."
    return f'<h2>Can its confidence be believed?</h2>{drawn.pair(both)}<p class="muted note">{told}</p>'


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
