"""`kling listen`: receive events from a cursor kept on disk."""
