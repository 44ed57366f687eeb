"""The event log has an id, and the database one that stays when it is restored"""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    table = op.create_table(
        "event_log",
        sa.Column("database_id", sa.String(), primary_key=True),
        sa.Column("id", sa.String(), nullable=False),
    )
    op.bulk_insert(table, [{"database_id": secrets.token_hex(8), "id": secrets.token_hex(8)}])
