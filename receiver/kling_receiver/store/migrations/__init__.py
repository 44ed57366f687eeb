"""The shapes that the tables had, oldest first; `kling-receiver serve` and `migrate` apply what is missing."""
