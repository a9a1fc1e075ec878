"""How many more labels? What the random slice says, in words; the learning curve draws it."""

from html import escape

from services.trainer.report.content import Outlook
from services.trainer.report.parts import table


def outlook_section(outlook: Outlook | None) -> str:
    if outlook is None:
        return ""
    parts = ["<h2>How many more labels?</h2>"]
    if outlook.forecasts:  # near the top there is no round accuracy left to ask for
        asked = [("", [escape(target), escape(told)]) for target, told in outlook.forecasts.items()]
        answers = table(["accuracy on the random slice", "more labels"], asked, text_columns={0, 1})
        parts.append(f'<div class="card prose">{answers}</div>')
    if outlook.standings:
        rules = [("", [escape(rule.replace("_", " ")), escape(told)]) for rule, told in outlook.standings.items()]
        standing = table(["stopping rule", "where it stands"], rules, text_columns={0, 1})
        parts.append(f'<div class="card prose after">{standing}</div>')
    told = outlook.cost
    if outlook.expected_gain is not None:
        told = f"The next batch is expected to bring {100 * outlook.expected_gain:+.1f} points. {told}"
    parts.append(f'<p class="muted">{escape(told)}</p>')
    return "".join(parts)
