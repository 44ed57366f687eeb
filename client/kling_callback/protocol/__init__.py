"""Kling's protocol and our own tokens: pure functions, shared with the receiver."""
