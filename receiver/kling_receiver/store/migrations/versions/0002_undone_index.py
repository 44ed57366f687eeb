"""An index of the tasks that have ended and are not done, which are few"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    undone = sa.text("origin IS NOT NULL AND NOT done")
    op.create_index("task_undone", "task", ["id"], sqlite_where=undone, postgresql_where=undone)
