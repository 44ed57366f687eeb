"""Numbers for the pages."""
