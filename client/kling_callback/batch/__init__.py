"""Batches: the jobs of a file, submitted through the receiver, followed by one event stream, resumed by their ids."""
