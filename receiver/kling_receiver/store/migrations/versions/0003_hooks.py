"""Tables of hooks and delivery attempts; deliveries to the former single hook go to the hook `default`"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "hook",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=True),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("secrets", sa.Text(), nullable=False),
        sa.Column("filter", sa.Text(), nullable=False),
        sa.Column("schedule", sa.Text(), nullable=False),
        sa.Column("concurrency", sa.Integer(), nullable=False),
        sa.Column("rate", sa.Float(), nullable=True),
        sa.Column("timeout", sa.Float(), nullable=False),
        sa.Column("cursor", sa.BigInteger(), nullable=False),
        sa.Column("failing_since", sa.BigInteger(), nullable=True),
        sa.Column("paused_at", sa.BigInteger(), nullable=True),
        sa.Column("paused_because", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("source IN ('added', 'file', 'settings', 'task')", name="source"),
        sa.CheckConstraint("(source = 'task') = (task IS NOT NULL)", name="task"),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_index("hook_task", "hook", ["task"])

    op.create_table(
        "attempt",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hook", sa.String(), nullable=False),
        sa.Column("event", sa.BigInteger(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("ms", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Boolean(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=True),
        sa.Column("answer", sa.String(), nullable=False),
        sa.Column("error", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("attempt_of", "attempt", ["hook", "event"])
    op.create_index("attempt_newest", "attempt", ["event"])

    op.add_column("job", sa.Column("hook", sa.String(), nullable=True))
    hooked = sa.text("hook IS NOT NULL")
    op.create_index("job_hook", "job", ["hook"], sqlite_where=hooked, postgresql_where=hooked)
    op.execute("""
        UPDATE job SET key = key || '/default', lane = 'hook default', hook = 'default',
            data = '{"hook":"default","event":' || substr(key, 6) || '}'
        WHERE kind = 'hook'
    """)
