"""A work queue in an SQL table, and the batches and sensors that serve it."""
