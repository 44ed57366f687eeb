"""Tasks have outputs that are no files, Kling's request id and Kling's times; results have a warning."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE task ADD COLUMN outputs TEXT NOT NULL DEFAULT 'null'")
    op.execute("ALTER TABLE task ADD COLUMN request_id VARCHAR")
    op.execute("ALTER TABLE task ADD COLUMN kling_created_at BIGINT")
    op.execute("ALTER TABLE task ADD COLUMN kling_updated_at BIGINT")
    op.execute("ALTER TABLE result ADD COLUMN warning VARCHAR NOT NULL DEFAULT ''")
