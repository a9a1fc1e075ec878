"""docs/configuration.md against the Settings of both services."""

import re
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from services.inference.settings import Settings as InferenceSettings
from services.trainer.settings import Settings as TrainerSettings

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"


def documented() -> set[str]:
    """Variables in the first column of its tables, where `_GRPC_PORT` after `INFERENCE_...` is short for the whole."""
    found = set()
    for row in DOCUMENT.read_text().splitlines():
        service = ""
        for name in re.findall(r"`(\w+)`", row.split("|")[1]) if row.startswith("|") else ():
            if name.startswith("_"):
                found.add(service + name)
            elif name.isupper():
                service = name.split("_")[0]
                found.add(name)
    return found


def variables(settings: type[BaseSettings]) -> set[str]:
    prefix = settings.model_config["env_prefix"]
    return {str(field.validation_alias or f"{prefix}{name}".upper()) for name, field in settings.model_fields.items()}


@pytest.mark.parametrize("settings", [InferenceSettings, TrainerSettings])
def test_every_variable_of_a_service_is_documented(settings: type[BaseSettings]) -> None:
    assert variables(settings) - documented() == set()


def test_every_documented_variable_of_a_service_is_read_by_it() -> None:
    services = {name for name in documented() if name.startswith(("INFERENCE_", "TRAINER_"))}
    assert services - variables(InferenceSettings) - variables(TrainerSettings) == set()
