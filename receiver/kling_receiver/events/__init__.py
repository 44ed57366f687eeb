"""Notify waiting streams of new events, and render tasks and events as JSON."""
