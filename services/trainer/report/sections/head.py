"""What a reader sees first: the campaign's name, how it ended and its figures."""

from collections.abc import Sequence
from html import escape

from services.trainer.report.content import CampaignReport, RoundRow
from services.trainer.report.table import percent


def subtitle(report: CampaignReport) -> str:
    backbone = report.config.get("backbone", {}).get("name", "?")
    begun = report.created.strftime("%Y-%m-%d %H:%M %Z").strip()
    return escape(f"{backbone}, {report.config.get('strategy', '?')} sampling · begun {begun} · {report.reason}")


def tiles(rows: Sequence[RoundRow]) -> str:
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
