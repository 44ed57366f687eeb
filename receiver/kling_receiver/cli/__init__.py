"""The `kling-receiver` command: one module for each group of subcommands."""
