"""The rows of the table of typed jobs: their endpoints, parameters and rules."""
