"""report.html: one file that needs nothing else, so that it can be sent and read offline."""

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import yaml

from services.trainer.report.content import CampaignReport, Outlook, RoundRow, phases
from services.trainer.report.parts import STYLE, picture, table
from services.trainer.report.table import decimal, percent

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$name: campaign report</title>
<style>$style</style>
</head>
<body><main>
<h1>$name</h1>
<p class="muted">$subtitle</p>
<div class="tiles">$tiles</div>
<h2>What the labels bought</h2>
$learning_curve
<h2>Round by round</h2>
<div class="card">$rounds</div>
<p class="muted">Accuracy, macro F1 and ECE are measured on test samples, which decide nothing. The random slice is
the labelled samples that were drawn at random: promotion and stopping look at those alone.</p>
$outlook
<h2>Where it errs</h2>
$confusion
<h2>Calibration and time</h2>
$calibration
<div class="card after">$seconds</div>
<h2>Labels by class</h2>
<div class="card">$class_counts</div>
<h2>Configuration</h2>
<div class="card"><pre>$config</pre></div>
</main></body>
</html>
""")


def render_page(report: CampaignReport, pictures: Mapping[str, bytes]) -> str:
    """The page with its pictures inside. Everything that comes from outside is escaped."""
    return PAGE.substitute(
        style=STYLE,
        name=escape(report.name),
        subtitle=escape(_subtitle(report)),
        tiles=_tiles(report.rows),
        rounds=_rounds(report.rows),
        outlook=_outlook(report.outlook),
        seconds=_seconds(report.rows),
        class_counts=_class_counts(report),
        config=escape(yaml.safe_dump(_plain(report.config), sort_keys=False, allow_unicode=True).rstrip()),
        learning_curve=picture(pictures, "learning_curve", "Accuracy and macro F1 against labels"),
        confusion=picture(pictures, "confusion_matrix", "Confusion matrix of the last round", "square"),
        calibration=picture(pictures, "calibration_and_time", "Calibration error and seconds by phase"),
    )


def _subtitle(report: CampaignReport) -> str:
    backbone = report.config.get("backbone", {}).get("name", "?")
    begun = report.created.strftime("%Y-%m-%d %H:%M %Z").strip()
    return f"{backbone}, {report.config.get('strategy', '?')} sampling · begun {begun} · {report.reason}"


def _tiles(rows: Sequence[RoundRow]) -> str:
    if not rows:
        return _tile("0", "rounds finished")
    first, last = rows[0], rows[-1]
    served = max((r.version for r in rows if r.promoted), default=None)
    gain = 100 * ((last.test("accuracy") or 0.0) - (first.test("accuracy") or 0.0))
    return "".join(
        [
            _tile(percent(last.test("accuracy")) or "?", f"test accuracy ({gain:+.1f} points)"),
            _tile(percent(last.test("macro_f1")) or "?", "macro F1"),
            _tile(f"{last.labels:,}", f"labels, from {first.labels:,}"),
            _tile(str(served or "none"), "version that serves"),
            _tile(_duration(sum(r.total_seconds for r in rows)), f"in {len(rows)} rounds"),
        ]
    )


def _tile(value: str, caption: str) -> str:
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(caption)}</span></div>'


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _rounds(rows: Sequence[RoundRow]) -> str:
    head = ["round", "strategy", "labels", "accuracy", "macro F1", "ECE", "random slice", "version", "promoted"]
    served = max((r.version for r in rows if r.promoted), default=None)
    body = [("served" if row.version == served else "", _round_cells(row)) for row in rows]
    return table(head, body, text_columns={1})


def _round_cells(row: RoundRow) -> list[str]:
    cells = [
        str(row.round_no),
        row.strategy.replace("_", " "),
        f"{row.labels:,}",
        percent(row.test("accuracy")),
        percent(row.test("macro_f1")),
        decimal(row.test("ece")),
        percent(row.metrics.get("random_slice", {}).get("accuracy")),
        str(row.version),
    ]
    return [*map(escape, cells), '<span class="yes">yes</span>' if row.promoted else "no"]


def _seconds(rows: Sequence[RoundRow]) -> str:
    names = phases(rows)
    body = []
    for row in rows:
        spent = [f"{row.seconds[p]:.1f}" if p in row.seconds else "" for p in names]
        rate = f"{row.images_scored_per_second:,.0f}" if row.images_scored_per_second else ""
        body.append(("", [str(row.round_no), *spent, f"{row.total_seconds:.1f}", rate]))
    return table(["round", *(f"{p} s" for p in names), "total s", "images scored/s"], body, text_columns=set())


def _outlook(outlook: Outlook | None) -> str:
    if outlook is None:
        return ""
    answers = table(
        ["accuracy on the random slice", "more labels"],
        [("", [escape(target), escape(told)]) for target, told in outlook.forecasts.items()],
        text_columns={0, 1},
    )
    parts = ["<h2>How many more labels?</h2>", f'<div class="card prose">{answers}</div>']
    if outlook.standings:
        rules = [("", [escape(rule.replace("_", " ")), escape(told)]) for rule, told in outlook.standings.items()]
        standing = table(["stopping rule", "where it stands"], rules, text_columns={0, 1})
        parts.append(f'<div class="card prose after">{standing}</div>')
    told = outlook.cost
    if outlook.expected_gain is not None:
        told = f"The next batch is expected to bring {100 * outlook.expected_gain:+.1f} points. {told}"
    parts.append(f'<p class="muted">{escape(told)}</p>')
    return "".join(parts)


def _class_counts(report: CampaignReport) -> str:
    counts = report.rows[-1].class_counts if report.rows else {}
    largest = max(counts.values(), default=0) or 1
    body = []
    for name in sorted(counts, key=lambda n: -counts[n]):
        bar = f'<span class="bar" style="width:{18 * counts[name] / largest:.2f}rem"></span>'
        body.append(("", [escape(name), f"{counts[name]:,}", bar]))
    return table(["class", "labels", ""], body, text_columns={0, 2})


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
