"""Processes, servers and requests that the tools and the tests share."""
