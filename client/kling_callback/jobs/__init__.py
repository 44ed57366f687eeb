"""Typed jobs: their parameters, and the body of a create."""
