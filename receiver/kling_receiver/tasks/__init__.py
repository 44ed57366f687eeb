"""The life cycle of a task, from registration or first callback to `done`."""
