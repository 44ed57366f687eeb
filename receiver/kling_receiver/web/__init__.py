"""Incoming HTTP: the callback route, the API, limits and authentication."""
