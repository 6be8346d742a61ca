"""A stage as a job on a cluster."""
