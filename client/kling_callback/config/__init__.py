"""Where settings come from, beside their values."""
