"""grid.html, and the same section for a study's page: every trial, best first."""

from html import escape

import numpy as np
import yaml

from services.trainer.comparison.grid import GridConfig
from services.trainer.comparison.page import interval, signed
from services.trainer.comparison.ranking import Ranking, Trial
from services.trainer.report.parts import STYLE, page_template, table
from services.trainer.report.pictures import PICTURE_STYLE, Pictures

PAGE = page_template(
    "$name: grid search",
    """\
<h1>$name</h1>
<p class="muted">$subtitle</p>
$section
<h2>Configuration</h2>
<div class="card"><pre>$config</pre></div>
""",
    PICTURE_STYLE,
)

_TRIALS = (("trials", "Validation accuracy of each trial with its interval"),)

METHOD = """\
<p class="muted">Judged by {folds}-fold cross-validation inside {labels:,} labelled samples that are drawn at random
for each of {seeds} seeds; samples and folds of a seed are the same for every trial, and what a trial itself searches
for (C, steps) it searches in the other folds. Intervals: 95%, t over seeds; differences are taken seed by seed. The
test accuracy is of a model fitted on all {labels:,} samples; it decided nothing. The best of many looks better than it
is: expect its validation accuracy to be too high by a little.</p>"""


def render_grid_page(config: GridConfig, ranking: Ranking | None, drawn: Pictures, missing: int) -> str:
    still = f" · cells without a result yet: {missing}" if missing else ""
    return PAGE.substitute(
        style=STYLE,
        name=escape(config.name),
        subtitle=escape(f"grid search: {len(config.settings)} settings, {len(config.seeds)} seeds{still}"),
        section=grid_section(config, ranking, drawn),
        config=escape(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip()),
    )


def grid_section(config: GridConfig, ranking: Ranking | None, drawn: Pictures) -> str:
    if ranking is None:
        return '<p class="muted">No trial is finished yet.</p>'
    method = METHOD.format(folds=config.setting.learner.folds, labels=config.labels, seeds=len(config.seeds))
    return (
        f"<p>{_verdict(ranking)}</p>{method}"
        f"{drawn.pair(_TRIALS, wide=True)}"
        "<h2>The best setting, for a campaign's file</h2>"
        f'<div class="card"><pre>{escape(fragment(ranking.best).rstrip())}</pre></div>'
        f'<h2>All {len(ranking.trials)} trials</h2><div class="card dense">{_table(ranking)}</div>'
    )


def _verdict(ranking: Ranking) -> str:
    best, gain = ranking.best, ranking.best.gain
    told = f"Best: <b>{escape(best.name)}</b>, {100 * best.validation.mean():.1f}% on the validation parts"
    if best.is_default:
        told += ", which is the default setting"
    elif gain is not None:
        sure = "" if gain.resolved else ", which these seeds do not tell from zero"
        told += f", {signed(gain)} points from the default ({interval(gain)}){sure}"
    others = len(ranking.trials) - 1
    return f"{told}. Of the {others} others, {ranking.level_with_best} are not shown to be worse."


def fragment(trial: Trial) -> str:
    """The sections `backbone` and `learner` of a campaign, only what is not a default of theirs."""
    backbone = trial.setting.backbone.model_dump(mode="json", exclude_defaults=True)
    learner = trial.setting.learner.model_dump(mode="json", exclude_defaults=True)
    sections = {"backbone": backbone, "learner": {"mode": trial.setting.learner.mode, **learner}}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def _table(ranking: Ranking) -> str:
    head = ["", "backbone", "learner", "validation", "95%", "less default", "95%", "log-loss", "test", "CPU s", "seeds"]
    rows = [("served" if at == 0 else "", _row(at + 1, trial)) for at, trial in enumerate(ranking.trials)]
    return table(head, rows, text_columns={1, 2})


def _row(place: int, trial: Trial) -> list[str]:
    low, high = trial.interval()
    compared = ["default", ""] if trial.is_default else ["", ""]
    if trial.gain is not None and not trial.is_default:
        compared = [signed(trial.gain), interval(trial.gain)]
    return [
        str(place),
        escape(trial.setting.backbone_name),
        escape(trial.setting.learner_name),
        f"{100 * trial.validation.mean():.1f}%",
        f"{100 * low:.1f} to {100 * high:.1f}" if np.isfinite(low) and len(trial.seeds) > 1 else "one seed",
        *compared,
        f"{trial.log_loss.mean():.3f}",
        f"{100 * trial.test.mean():.1f}%",
        f"{trial.cpu_seconds:.1f}",
        str(len(trial.seeds)),
    ]
