"""The caller's id at Kling, indexed, and the digest of a create's parameters"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task", sa.Column("external_task_id", sa.String(), nullable=True))
    op.add_column("task", sa.Column("request_sha256", sa.String(), nullable=True))
    known = sa.text("external_task_id IS NOT NULL")
    op.create_index("task_external_id", "task", ["external_task_id"], sqlite_where=known, postgresql_where=known)
