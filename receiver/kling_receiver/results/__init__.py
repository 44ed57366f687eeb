"""A task's result files: downloaded, checked, stored."""
