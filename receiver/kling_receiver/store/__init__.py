"""The database: synchronous functions on one connection; the only folder that opens transactions."""
