"""Exact numbers from the database for the pages: bounded queries, on the readers' own connections."""
