"""The JSON of a task: in Kling's two standards, and as relays tell it."""
