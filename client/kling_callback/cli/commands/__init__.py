"""The commands of `kling`."""
