"""Creates that the receiver sends, the slots that they hold, and hooks in Kling's own format"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task", sa.Column("slots", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("task", sa.Column("keeps_our_id", sa.Boolean(), nullable=False, server_default=sa.false()))
    held = sa.text("slots > 0")
    op.create_index("task_slots", "task", ["model"], sqlite_where=held, postgresql_where=held)
    sent_here = sa.text("substr(create_token, 1, 9) = 'receiver/'")
    op.create_index("task_sent_here", "task", ["create_token"], sqlite_where=sent_here, postgresql_where=sent_here)
    op.add_column("hook", sa.Column("format", sa.String(), nullable=False, server_default="event"))
    op.create_table(
        "submission",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("attempt", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("state IN ('claimed', 'queued', 'sending')", name="state"),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("task_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("submission_queue", "submission", ["state", "rank", "id", "model", "slots", "size"])
    account = op.create_table(
        "account",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("slot_ceiling", sa.Integer(), nullable=True),
        sa.Column("create_interval_ms", sa.Integer(), nullable=False),
        sa.Column("next_create_at", sa.BigInteger(), nullable=False),
    )
    op.bulk_insert(account, [{"id": 1, "slot_ceiling": None, "create_interval_ms": 0, "next_create_at": 0}])
