"""A work queue in an SQL table, with its batches and sensors."""
