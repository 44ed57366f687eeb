"""Programs that a bench runs as processes of their own: load, servers, and bare routes and clients to compare with."""
