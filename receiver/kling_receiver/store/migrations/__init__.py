"""Migrations of the tables, oldest first; `kling-receiver serve` and `migrate` apply those that are missing."""
