"""HTTP requests to untrusted addresses (result files, hooks), guarded against private networks."""
