"""How long each success took, and an index of the newest ones of a family"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("task", sa.Column("duration_ms", sa.BigInteger(), nullable=True))
    known = sa.text("duration_ms IS NOT NULL")
    op.create_index("task_durations", "task", ["family", "created_at"], sqlite_where=known, postgresql_where=known)
