"""Alembic migrations, oldest first; `kling-receiver serve` and `migrate` apply the missing ones."""
