"""Alembic's environment: migrations run in the transaction of `Database.migrate`, on its connection."""

from alembic import context

from kling_receiver.store.tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
