"""Faster graphs of the newest versions: published with which agreement, or refused and why."""

from collections.abc import Sequence
from html import escape

from services.common.manifest import VariantCheck
from services.trainer.report.content import VariantRow
from services.trainer.report.parts import table


def variants_section(variants: Sequence[VariantRow]) -> str:
    if not variants:
        return ""
    head = ["version", "variant", "", "agrees with fp32", "random slice right", "largest probability error"]
    body = [("", _cells(it)) for it in variants]
    return (
        "<h2>Faster variants</h2>"
        f'<div class="card prose">{table(head, body, text_columns={1, 2, 3, 4})}</div>'
        '<p class="muted">Compared with the fp32 graph on images that nobody has labelled, and on the randomly drawn '
        "labels.</p>"
    )


def _cells(it: VariantRow) -> list[str]:
    check = it.check
    outcome = f'<span class="bad">refused</span>: {escape(check.refused)}' if check.refused else "published"
    return [str(it.version), escape(it.kind), outcome, _agreement(check), _slice(check), _error(check)]


def _agreement(check: VariantCheck) -> str:
    return "" if check.agreement is None else f"{check.agreement:.2%} of {check.images:,} images"


def _slice(check: VariantCheck) -> str:
    if not check.random_slice:
        return ""
    return f"{check.random_slice_correct} of {check.random_slice} (fp32: {check.random_slice_correct_fp32})"


def _error(check: VariantCheck) -> str:
    return "" if check.max_probability_error is None else f"{check.max_probability_error:.4f}"
