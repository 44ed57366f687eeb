"""Kill a receiver from outside at every relevant call, restart it, and check the README's promises."""
