"""The images that each round asked for: what the model said, what the oracle answered, and the score."""

from collections.abc import Mapping, Sequence
from html import escape

from services.trainer.report.asked import Asked, AskedRound, gallery

STYLE = """
details { margin-top: .8rem; } summary { cursor: pointer; padding: .35rem 0; }
summary b { font-weight: 650; }
.asked { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.6rem, 1fr)); gap: .6rem; margin-top: .5rem; }
.asked .one { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; overflow: hidden;
  font-size: .77rem; line-height: 1.4; }
.asked .one.wrong { border-color: var(--bad); }
.asked img, .asked .gone { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; }
.asked img.small { image-rendering: pixelated; }
.asked .gone { display: grid; place-items: center; color: var(--muted); background: var(--line); text-align: center; }
.asked .said { padding: .35rem .45rem .45rem; } .asked .said div { display: flex; gap: .25rem; align-items: baseline; }
.asked .said span, .asked .said b { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.asked .said .at { flex: none; margin-left: auto; color: var(--muted); font-size: .7rem; }
.bad { color: var(--bad); } .ok { color: var(--good); }
"""


def gallery_section(rounds: Sequence[AskedRound], images: Mapping[str, str]) -> str:
    """`images`: sample id -> data URI, of what `gallery` shows; the newest round first and open."""
    shown = gallery(rounds)
    if not shown:
        return ""
    whole = {it.round_no: it for it in rounds}
    parts = [_round(whole[it.round_no], it.samples, images, open_it=it is shown[-1]) for it in reversed(shown)]
    left_out = sum(bool(it.samples) for it in rounds) - len(shown)
    note = f"The {left_out} rounds before have no pictures here. " if left_out else ""
    return (
        "<h2>What was asked</h2>"
        '<p class="muted">What the newest model said of each image when it was asked for, and under it the class that '
        "was bought; the score is the acquisition function's, higher for more worth labelling. "
        f"{note}All samples of all rounds are in picks.csv.</p>{''.join(parts)}"
    )


def _round(whole: AskedRound, shown: Sequence[Asked], images: Mapping[str, str], open_it: bool) -> str:
    cards = "".join(_card(it, images.get(it.sample_id)) for it in shown)
    head = f"<b>Round {whole.round_no}</b>, {escape(whole.strategy.replace('_', ' '))}: {_told(whole, len(shown))}"
    return f'<details{" open" if open_it else ""}><summary>{head}</summary><div class="asked">{cards}</div></details>'


def _told(whole: AskedRound, shown: int) -> str:
    count, told = len(whole.samples), [f"{len(whole.samples):,} images asked for"]
    if whole.answered < count:
        told.append(f"{count - whole.answered:,} wait for an answer")
    if whole.judged:
        told.append(f"the model was wrong about {whole.wrong:,} of {whole.judged:,}")
    elif whole.round_no == 1:
        told.append("no model yet")
    if shown < count:
        scored = any(it.score is not None for it in whole.samples)
        told.append(f"the {shown} {'highest scores' if scored else 'first'} shown")
    return "; ".join(told)


def _card(it: Asked, image: str | None) -> str:
    said = [_line(*_prediction(it)), _line(*_answer(it))]
    how = "drawn at random" if it.drawn_at_random else "" if it.score is None else f"score {it.score:.4f}"
    if how:
        said.append(f'<div class="muted">{how}</div>')
    # An id says nothing to most readers: a hover gives it to those who look for the file, and long names whole.
    hover = escape(f"{it.predicted or 'no prediction'}, {it.answer or 'not answered'}: {it.sample_id}")
    style = "one wrong" if it.wrong else "one"
    return f'<div class="{style}" title="{hover}">{_image(it, image)}<div class="said">{"".join(said)}</div></div>'


def _image(it: Asked, image: str | None) -> str:
    if image is None:
        return '<div class="gone">image cannot be read</div>'
    alt = f"asked: {it.answer or 'not answered yet'}"
    small = ' class="small"' if image.startswith("data:image/png") else ""
    return f'<img{small} alt="{escape(alt)}" src="{escape(image)}">'


def _prediction(it: Asked) -> tuple[str, str]:
    if it.predicted is None:
        return '<span class="muted">no prediction</span>', ""
    return escape(it.predicted), "" if it.confidence is None else f"{it.confidence:.0%}"


def _answer(it: Asked) -> tuple[str, str]:
    if it.answer is None:
        return '<span class="muted">not answered</span>', ""
    if it.wrong is None:
        return f"<b>{escape(it.answer)}</b>", ""
    if it.wrong:
        return f'<b class="bad">✗ {escape(it.answer)}</b>', ""
    return f'<b class="ok">✓ {escape(it.answer)}</b>', ""


def _line(text: str, at: str) -> str:
    return f"<div><span>{text}</span>{f'<span class=at>{at}</span>' if at else ''}</div>"
