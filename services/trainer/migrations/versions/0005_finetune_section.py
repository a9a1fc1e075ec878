"""The settings of fine-tuning have a section of their own in `learner`"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_MOVED = ("stages", "epochs", "batch_size", "learning_rate", "backbone_lr_share", "weight_decay", "mirror", "device")


def upgrade() -> None:
    _change(_into_section)


def downgrade() -> None:
    _change(_out_of_section)


def _change(learner: Any) -> None:
    connection = op.get_bind()
    for name in ("campaigns", "comparisons"):
        table = sa.table(name, sa.column("name", sa.String), sa.column("config", sa.Text))
        for key, raw in connection.execute(sa.select(table.c.name, table.c.config)).all():
            config = json.loads(raw)
            for section in (config.get("learner"), *config.get("heads", {}).values()):
                if section:
                    learner(section)
            connection.execute(sa.update(table).where(table.c.name == key).values(config=json.dumps(config)))


def _into_section(learner: dict[str, Any]) -> None:
    moved = {key: learner.pop(key) for key in _MOVED if key in learner}
    if moved:
        learner["finetune"] = {**moved, **learner.get("finetune", {})}


def _out_of_section(learner: dict[str, Any]) -> None:
    # What the older code does not know is lost with it.
    section = learner.pop("finetune", {})
    learner.update({key: section[key] for key in _MOVED if key in section})
