"""HTTP requests to addresses that others chose, guarded against private networks."""
