"""Tables of tasks, events, results, tags and jobs"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("lane", sa.String(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.String(), nullable=True),
        sa.Column("leased_until", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("(state = 'running') = (claim IS NOT NULL)", name="claim"),
        sa.CheckConstraint("state IN ('dead', 'ready', 'running')", name="state"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key", name="job_once"),
    )
    op.create_index("job_due", "job", ["state", "due_at"])

    op.create_table(
        "task",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("task_id", sa.String(), nullable=True),
        sa.Column("family", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("request", sa.Text(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("attempt", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("status_msg", sa.String(), nullable=False),
        sa.Column("origin", sa.String(), nullable=True),
        sa.Column("hint", sa.String(), nullable=True),
        sa.Column("hint_msg", sa.String(), nullable=False),
        sa.Column("hints", sa.BigInteger(), nullable=False),
        sa.Column("callback_id", sa.String(), nullable=True),
        sa.Column("cost", sa.Text(), nullable=False),
        sa.Column("done", sa.Boolean(), nullable=False),
        sa.Column("callbacks", sa.BigInteger(), nullable=False),
        sa.Column("kept", sa.Integer(), nullable=False),
        sa.Column("kept_bytes", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint(
            "(status IN ('failed', 'succeed')) = (origin IS NOT NULL)"
            " AND (origin IS NULL OR origin IN ('callback', 'kling', 'local'))",
            name="origin",
        ),
        sa.CheckConstraint("NOT done OR status IN ('failed', 'succeed')", name="done"),
        sa.CheckConstraint("outcome IN ('created', 'none', 'not_created', 'pending', 'unknown')", name="outcome"),
        sa.CheckConstraint("status IN ('created', 'failed', 'processing', 'submitted', 'succeed')", name="status"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("task_newest", "task", ["created_at", "id"])
    op.create_index("task_status", "task", ["status", "created_at", "id"])
    op.create_index(
        "task_task_id",
        "task",
        ["task_id"],
        sqlite_where=sa.text("task_id IS NOT NULL"),
        postgresql_where=sa.text("task_id IS NOT NULL"),
    )

    op.create_table(
        "event",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("task", sa.String(), nullable=False),
        sa.Column("type", sa.String(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(), nullable=True),
        sa.Column("repeats", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "event_once",
        "event",
        ["task", "digest"],
        unique=True,
        sqlite_where=sa.text("digest IS NOT NULL"),
        postgresql_where=sa.text("digest IS NOT NULL"),
    )
    op.create_index("event_of_task", "event", ["task", "id"])

    op.create_table(
        "result",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("kling_id", sa.String(), nullable=True),
        sa.Column("duration", sa.Float(), nullable=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("content_type", sa.String(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("name", sa.String(), nullable=True),
        sa.Column("source_url", sa.String(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.String(), nullable=False),
        sa.CheckConstraint("(status = 'stored') = (sha256 IS NOT NULL)", name="stored"),
        sa.CheckConstraint("status IN ('failed', 'pending', 'stored')", name="status"),
        sa.ForeignKeyConstraint(
            ["task"],
            ["task.id"],
        ),
        sa.PrimaryKeyConstraint("task", "n"),
    )
    op.create_table(
        "tag",
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task"],
            ["task.id"],
        ),
        sa.PrimaryKeyConstraint("tag", "task"),
    )
    op.create_index("ix_tag_task", "tag", ["task"])
