"""Lines of a Prometheus metrics page that say something to a person."""

import re
import urllib.request
from collections.abc import Sequence

from services.demo.ports import HOST

INFERENCE_METRICS = ("inference_images_total", "inference_model_info", "inference_model_accuracy")
TRAINER_METRICS = ("al_round_accuracy", "al_round_labelled_samples", "al_campaign_state")


def key_lines(port: int, names: Sequence[str], campaign: str) -> list[str]:
    """Samples of these metrics about this campaign. Raises OSError when nothing answers."""
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as answer:
        page = answer.read().decode()
    return select(page, names, campaign)


def select(page: str, names: Sequence[str], campaign: str) -> list[str]:
    """Lines of the named metrics about the campaign, in the order of `names`.

    Zeros are left out, and of metrics by round all but the last round.
    """
    lines = [line for line in page.splitlines() if f'="{campaign}"' in line and not line.endswith(" 0.0")]
    chosen = []
    for name in names:
        named = [line for line in lines if line.startswith(f"{name}{{")]
        newest = max((_round_of(line) for line in named), default=0)
        chosen += [line for line in named if not name.startswith("al_round_") or _round_of(line) == newest]
    return chosen


def _round_of(line: str) -> int:
    found = re.search(r'[{,]round="(\d+)"', line)
    return int(found[1]) if found else 0
