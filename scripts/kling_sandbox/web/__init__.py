"""A small HTTP server on h11: requests, responses, connections."""
