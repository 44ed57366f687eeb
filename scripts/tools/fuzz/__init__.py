"""Inputs that no sender should send, by a seeded random: to the parsers themselves, and over HTTP."""
