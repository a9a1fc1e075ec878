"""Pictures inside the page, each for light and for dark."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from services.trainer.report.parts import png_uri
from services.trainer.report.plots.canvas import DARK, LIGHT, Theme

PICTURE_STYLE = """
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .9rem; }
.pair + .card, .card + .pair, .pair + .pair { margin-top: .9rem; }
.pair figure { display: flex; align-items: flex-start; justify-content: center; }
.pair figure picture { display: block; width: 100%; }
.pair figure img { display: block; width: 100%; max-width: 36rem; margin: 0 auto; }
.pair figure.wide { grid-column: 1 / -1; overflow-x: auto; }
.pair figure.wide picture { min-width: 34rem; } .pair figure.wide img { max-width: 50rem; }
"""


@dataclass(frozen=True)
class Pictures:
    """PNG by name. The dark ones may be missing: then the light ones are shown everywhere."""

    light: Mapping[str, bytes]
    dark: Mapping[str, bytes]

    @staticmethod
    def of(drawn: Mapping[str, Callable[[Theme], bytes]]) -> "Pictures":
        """Each drawn for both kinds of pages."""
        light, dark = ({name: draw(theme) for name, draw in drawn.items()} for theme in (LIGHT, DARK))
        return Pictures(light, dark)

    def pair(self, wanted: Sequence[tuple[str, str]], wide: bool = False) -> str:
        """Those of `wanted`, (name, what it shows), that there are: side by side, or `wide` one below the other."""
        style = ' class="wide"' if wide else ""
        figures = [f"<figure{style}>{self._themed(name, text)}</figure>" for name, text in wanted if name in self.light]
        return f'<div class="pair">{"".join(figures)}</div>' if figures else ""

    def _themed(self, name: str, text: str) -> str:
        dark = ""
        if name in self.dark:
            dark = f'<source media="(prefers-color-scheme: dark)" srcset="{png_uri(self.dark[name])}">'
        return f'<picture>{dark}<img alt="{escape(text)}" src="{png_uri(self.light[name])}"></picture>'
