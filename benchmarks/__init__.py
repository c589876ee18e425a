"""Benchmarks next to a usual Celery design: files per second, rows per second, seconds from event to rows."""
