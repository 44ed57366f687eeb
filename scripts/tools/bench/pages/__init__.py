"""What the pages cost among a million tasks: their reads, each over HTTP, and many of them open at once."""
