"""Streams whose messages are appended to a Delta table, each offset exactly once."""
