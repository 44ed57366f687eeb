"""The HTTP calls to Kling and to the receiver: authentication, retries, and what each answer means."""
