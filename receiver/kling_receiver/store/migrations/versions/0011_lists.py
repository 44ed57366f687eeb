"""Indexes of the filters of the list of tasks, and the counts of events an hour"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def _create_index(name: str, columns: list[str], condition: str | None = None) -> None:
    where = sa.text(condition) if condition else None
    op.create_index(name, "task", columns, sqlite_where=where, postgresql_where=where)


def upgrade() -> None:
    _create_index("task_family", ["family", "created_at", "id"])
    _create_index("task_model", ["model", "created_at", "id"], "model <> ''")
    op.drop_index("task_status", "task")
    _create_index("task_status", ["status", "created_at", "id"], "status <> 'succeed'")
    op.drop_index("task_durations", "task")
    _create_index("task_durations", ["family", "created_at", "id", "duration_ms"], "duration_ms IS NOT NULL")
    op.rename_table("tag", "old_tag")
    op.drop_index("ix_tag_task_id", "old_tag")
    op.create_table(
        "tag",
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name="tag_of_task"),
        sa.PrimaryKeyConstraint("task_id", "tag", name="tag_once"),
    )
    op.execute("""
        INSERT INTO tag (task_id, tag, created_at)
        SELECT task_id, tag, created_at FROM old_tag JOIN task ON task.id = task_id ORDER BY task_id, tag
    """)
    op.drop_table("old_tag")
    op.create_index("tag_newest", "tag", ["tag", "created_at", "task_id"])
