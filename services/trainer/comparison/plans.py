"""What can be worked on cell by cell: comparisons and grid searches."""

from pydantic import TypeAdapter

from services.trainer.comparison.config import ComparisonConfig
from services.trainer.comparison.grid import GridConfig

Plan = ComparisonConfig | GridConfig

_PLANS: TypeAdapter[Plan] = TypeAdapter(Plan)


def read_plan(json: str) -> Plan:
    """A stored one: unknown keys are forbidden and each kind has keys that it cannot do without, so only one fits."""
    return _PLANS.validate_json(json)
