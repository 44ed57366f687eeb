"""Who may see the pages: login links, the password, the cookie of a session."""
