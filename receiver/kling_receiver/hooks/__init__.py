"""Event delivery: which hooks exist, which events match them, and sending."""
