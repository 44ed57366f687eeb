"""What SQLite and PostgreSQL need: connections, checks at the start, the files of an SQLite database."""
