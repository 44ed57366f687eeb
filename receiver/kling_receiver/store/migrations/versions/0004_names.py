"""Columns have the names of the field; jobs have a pool and the delay of their due time.

Columns and tables are renamed in place, so that pending jobs, files and deliveries keep their content.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

RENAMED = {
    "task": {
        "task_id": "kling_id",
        "attempt": "create_token",
        "hints": "hint_count",
        "callbacks": "callback_count",
        "kept": "kept_callbacks",
        "callback_id": "callback_kling_id",
    },
    "tag": {"task": "task_id"},
    "event": {"task": "task_id", "at": "created_at", "digest": "body_sha256", "repeats": "repeat_count"},
    "result": {"task": "task_id", "n": "position", "name": "path"},
    "job": {
        "task": "task_id",
        "hook": "hook_name",
        "key": "unique_key",
        "lane": "concurrency_key",
        "data": "args",
        "claim": "claim_id",
        "leased_until": "lease_expires_at",
    },
    "hook": {"task": "task_id", "lane": "concurrency_key", "schedule": "retry_schedule", "rate": "rate_limit"},
    "delivery_attempt": {
        "hook": "hook_name",
        "event": "event_id",
        "task": "task_id",
        "at": "attempted_at",
        "ms": "duration_ms",
        "taken": "delivered",
        "status": "response_status",
        "answer": "response_body",
    },
}
NEVER = 1 << 60


def upgrade() -> None:
    op.rename_table("attempt", "delivery_attempt")
    for table, columns in RENAMED.items():
        for old, new in columns.items():
            # In place on both engines: SQLite's batch mode would copy the table. The new name has no quotes: SQLite
            # would write them into the constraints.
            op.execute(f'ALTER TABLE {table} RENAME COLUMN "{old}" TO {new}')
    op.execute("ALTER TABLE job ADD COLUMN pool VARCHAR NOT NULL DEFAULT ''")
    op.execute("ALTER TABLE job ADD COLUMN delay_ms BIGINT NOT NULL DEFAULT 0")
    # An upper bound: no delay is longer than the time from the creation of the job to its due time.
    op.execute(f"""
        UPDATE job SET delay_ms = CASE WHEN due_at >= {NEVER} THEN {NEVER}
            WHEN due_at > created_at THEN due_at - created_at ELSE 0 END
    """)  # a constant
    op.execute("""
        UPDATE job SET pool = CASE
            WHEN kind = 'dispatch-task' THEN 'task-hook-runs' WHEN kind = 'replay-task' THEN 'task-hook-replays'
            WHEN kind = 'hook-task' THEN 'task-hook-retries'
            WHEN kind = 'dispatch' THEN 'hook-runs' WHEN kind = 'replay' THEN 'hook-replays'
            WHEN kind = 'hook' THEN 'hook-retries' WHEN kind = 'download' THEN 'downloads' ELSE 'kling' END
    """)
    op.execute("UPDATE job SET kind = 'dispatch' WHERE kind = 'dispatch-task'")
    op.execute("UPDATE job SET kind = 'replay' WHERE kind = 'replay-task'")
    op.execute("""
        UPDATE job SET kind = 'delivery', unique_key = 'delivery/' || substr(unique_key, 6)
        WHERE kind IN ('hook', 'hook-task')
    """)
    op.execute("""UPDATE job SET args = replace(args, '"n":', '"index":') WHERE kind = 'download'""")
    op.execute("""
        UPDATE job SET args = replace(args, '"no_room":', '"storage_failures":') WHERE kind = 'download'
    """)
    op.execute("""UPDATE job SET args = replace(args, '"looks":', '"queries":') WHERE kind = 'overdue'""")
    op.execute("DROP INDEX task_task_id")
    op.create_index(
        "task_kling_id",
        "task",
        ["kling_id"],
        sqlite_where=sa.text("kling_id IS NOT NULL"),
        postgresql_where=sa.text("kling_id IS NOT NULL"),
    )
    op.execute("DROP INDEX ix_tag_task")
    op.create_index("ix_tag_task_id", "tag", ["task_id"])
