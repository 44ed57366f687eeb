"""The result of a task: which fields of its records name files, and the outputs that they are."""
