"""Incoming HTTP: the callback route, the API, authentication and limits."""
