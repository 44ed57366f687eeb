"""The dashboard: server-rendered pages, updated live. Pages read as the API does, and act through its routes."""
