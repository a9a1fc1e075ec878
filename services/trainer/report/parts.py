"""What all report pages are made of: one style, tables, and pictures inside the file."""

import base64
from collections.abc import Sequence
from html import escape
from string import Template

STYLE = """
:root { --ink: #1f2933; --muted: #5b6875; --paper: #f7f9fb; --card: #ffffff; --line: #e3e8ee; --accent: #2563eb;
  --good: #047857; --bad: #c02626; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf0; --muted: #9aa7b4; --paper: #12171d; --card: #1a2129; --line: #2b3540;
    --accent: #7cabff; --good: #5ad1a4; --bad: #ff8f8f; } }
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
/* For many columns: the last ones must not lie beyond the edge of the window. */
.dense th { white-space: normal; vertical-align: bottom; }
.dense th, .dense td { padding: .4rem; } .dense td { font-size: .9rem; }
.served td { font-weight: 650; } .yes { color: var(--good); }
figure { margin: 0; padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
img { max-width: 100%; height: auto; }
.bar { display: inline-block; height: .6rem; border-radius: .2rem; background: var(--accent); vertical-align: middle; }
pre { margin: 0; padding: 1rem; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
"""


def page_template(title: str, body: str, style: str = "") -> Template:
    """A whole page with `$style` and the placeholders of title and body; `style`: what this page adds to STYLE."""
    return Template(
        """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
"""
        f"<title>{title}</title>\n<style>$style{style}</style>\n</head>\n<body><main>\n{body}</main></body>\n</html>\n"
    )


def table(head: Sequence[str], body: Sequence[tuple[str, list[str]]], text_columns: set[int]) -> str:
    """`body`: rows of a CSS class and cells that are HTML already."""

    def cells(tag: str, values: Sequence[str]) -> str:
        styles = [' class="text"' if i in text_columns else "" for i in range(len(values))]
        return "".join(f"<{tag}{s}>{v}</{tag}>" for s, v in zip(styles, values, strict=True))

    rows = "".join(f'<tr class="{style}">{cells("td", values)}</tr>' for style, values in body)
    return f"<table><thead><tr>{cells('th', [escape(h) for h in head])}</tr></thead><tbody>{rows}</tbody></table>"


def png_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
