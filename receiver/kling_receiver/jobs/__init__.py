"""The job queue: enqueue, claim under a lease, run, settle, retry."""
