"""audit.html and audit.csv: labels that are probably wrong, with their pictures."""

import base64
import csv
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from services.trainer.audit import Suspect
from services.trainer.report.parts import STYLE, page_template

# Pixels a side: twice what a card shows, for fine screens.
_LARGEST = 352

_STYLE = """
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .9rem;
  margin-top: 1.4rem; }
.gallery .card { padding: .7rem; overflow-wrap: anywhere; }
.gallery img { display: block; width: 100%; border-radius: .35rem; margin-bottom: .5rem; }
.gallery img.small { image-rendering: pixelated; }
.gallery code { font-size: .72rem; color: var(--muted); }
"""

_PAGE = page_template(
    "$name: labels worth a second look",
    """\
<h1>$name: labels worth a second look</h1>
<p class="muted">$subtitle</p>
<div class="gallery">$cards</div>
""",
    _STYLE,
)


def audit_page(
    name: str, subtitle: str, suspects: Sequence[Suspect], classes: Sequence[str], images: np.ndarray
) -> str:
    """One file that needs nothing else; `images`: uint8 RGB [N, H, W, 3], one for each suspect."""
    cards = "".join(_card(it, classes, image) for it, image in zip(suspects, images, strict=True))
    return _PAGE.substitute(style=STYLE, name=escape(name), subtitle=escape(subtitle), cards=cards)


def audit_csv(suspects: Sequence[Suspect], classes: Sequence[str]) -> str:
    """One line a suspect, the most doubtful first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["sample_id", "label", "label_probability", "suggested", "suggested_probability"])
    for it in suspects:
        label, suggested = classes[it.given], classes[it.suggested]
        writer.writerow(
            [it.sample_id, label, f"{it.given_probability:.4f}", suggested, f"{it.suggested_probability:.4f}"]
        )
    return buffer.getvalue()


def _card(it: Suspect, classes: Sequence[str], image: np.ndarray) -> str:
    buffer = io.BytesIO()
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((_LARGEST, _LARGEST))
    thumbnail.save(buffer, "PNG")
    style = "small" if max(thumbnail.size) <= _LARGEST // 2 else ""
    picture = base64.b64encode(buffer.getvalue()).decode()
    given, suggested = escape(classes[it.given]), escape(classes[it.suggested])
    return (
        f'<div class="card"><img class="{style}" alt="labelled {given}" src="data:image/png;base64,{picture}">'
        f'<p>labelled <b>{given}</b> <span class="muted">{it.given_probability:.0%}</span></p>'
        f'<p>rather <b>{suggested}</b> <span class="muted">{it.suggested_probability:.0%}</span></p>'
        f"<code>{escape(it.sample_id)}</code></div>"
    )
