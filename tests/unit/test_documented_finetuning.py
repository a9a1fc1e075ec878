"""docs/finetuning.md against the settings of fine-tuning."""

import re
from pathlib import Path

from services.trainer.finetune_config import FinetuneConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "finetuning.md"


def test_every_setting_is_documented_and_every_documented_one_exists() -> None:
    rows = [row.split("|")[1] for row in DOCUMENT.read_text().splitlines() if row.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(FinetuneConfig.model_fields)
