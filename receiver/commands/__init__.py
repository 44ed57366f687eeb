"""The commands of `kling-receiver` that look at the running receiver, and give it orders; a group a file."""
