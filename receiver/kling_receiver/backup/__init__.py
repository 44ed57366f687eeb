"""Back up the database and the result files, and continue from a restored backup."""
