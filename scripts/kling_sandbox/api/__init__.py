"""Kling's routes: creates, queries, result files, and what each refuses."""
