"""What the model said of a sample when it was asked for"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("picks", schema=None) as batch_op:
        batch_op.add_column(sa.Column("predicted", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("confidence", sa.Float(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("picks", schema=None) as batch_op:
        batch_op.drop_column("confidence")
        batch_op.drop_column("predicted")
