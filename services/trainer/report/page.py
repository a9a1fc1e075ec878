"""report.html: one file that needs nothing else, so that it can be sent and read offline."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

import yaml

from services.trainer.report.content import CampaignReport, Outlook, RoundRow, phases
from services.trainer.report.table import decimal, percent

# Of every page that the trainer writes.
STYLE = """\
:root { --ink: #1f2933; --muted: #5b6875; --paper: #f7f9fb; --card: #ffffff; --line: #e3e8ee; --accent: #2563eb;
  --good: #047857; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --muted: #9aa7b4; --paper: #12171d; --card: #1a2129; --line: #2b3540;
    --accent: #7cabff; --good: #5ad1a4; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { margin: 0; font-size: 1.7rem; letter-spacing: -.01em; }
h2 { margin: 2.4rem 0 .8rem; font-size: 1.1rem; }
p { margin: .3rem 0; } .muted { color: var(--muted); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .8rem; margin: 1.4rem 0 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.tile { padding: .8rem 1rem; } .tile b { display: block; font-size: 1.45rem; font-weight: 650; }
.tile span { color: var(--muted); font-size: .84rem; }
.card { overflow-x: auto; } .card.after { margin-top: .9rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; font-size: .82rem; } tr:last-child td { border-bottom: 0; }
td.text, th.text { text-align: left; } .prose td + td { white-space: normal; }
.served td { font-weight: 650; } .yes { color: var(--good); }
figure { margin: 0; padding: .7rem; background: #ffffff; border: 1px solid var(--line); border-radius: .6rem;
  text-align: center; }
figure + figure { margin-top: .9rem; }
img { max-width: 100%; height: auto; } img.square { max-width: min(100%, 40rem); }
.bar { display: inline-block; height: .6rem; border-radius: .2rem; background: var(--accent); vertical-align: middle; }
pre { margin: 0; padding: 1rem; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }"""

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$name: campaign report</title>
<style>
$style
</style>
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
        learning_curve=_picture(pictures, "learning_curve", "Accuracy and macro F1 against labels"),
        confusion=_picture(pictures, "confusion_matrix", "Confusion matrix of the last round", "square"),
        calibration=_picture(pictures, "calibration_and_time", "Calibration error and seconds by phase"),
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
    return _table(head, body, text_columns={1})


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
    return _table(["round", *(f"{p} s" for p in names), "total s", "images scored/s"], body, text_columns=set())


def _outlook(outlook: Outlook | None) -> str:
    if outlook is None:
        return ""
    answers = _table(
        ["accuracy on the random slice", "more labels"],
        [("", [escape(target), escape(told)]) for target, told in outlook.forecasts.items()],
        text_columns={0, 1},
    )
    parts = ["<h2>How many more labels?</h2>", f'<div class="card prose">{answers}</div>']
    if outlook.standings:
        rules = [("", [escape(rule.replace("_", " ")), escape(told)]) for rule, told in outlook.standings.items()]
        table = _table(["stopping rule", "where it stands"], rules, text_columns={0, 1})
        parts.append(f'<div class="card prose after">{table}</div>')
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
    return _table(["class", "labels", ""], body, text_columns={0, 2})


def _table(head: Sequence[str], body: Sequence[tuple[str, list[str]]], text_columns: set[int]) -> str:
    """`body`: rows of a CSS class and cells that are HTML already."""

    def cells(tag: str, values: Sequence[str]) -> str:
        styles = [' class="text"' if i in text_columns else "" for i in range(len(values))]
        return "".join(f"<{tag}{s}>{v}</{tag}>" for s, v in zip(styles, values, strict=True))

    rows = "".join(f'<tr class="{style}">{cells("td", values)}</tr>' for style, values in body)
    return f"<table><thead><tr>{cells('th', [escape(h) for h in head])}</tr></thead><tbody>{rows}</tbody></table>"


def _picture(pictures: Mapping[str, bytes], name: str, text: str, style: str = "") -> str:
    if name not in pictures:
        return '<p class="muted">Nothing measured yet.</p>'
    data = base64.b64encode(pictures[name]).decode()
    return f'<figure><img class="{style}" alt="{escape(text)}" src="data:image/png;base64,{data}"></figure>'


def _plain(value: Any) -> Any:
    """Tuples as lists, which is how YAML writes them."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
