"""Seeded fuzzing: invalid inputs to the parsers, and over HTTP to a receiver."""
