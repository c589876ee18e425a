"""User activity events to a Delta table, each offset exactly once, and hourly statistics."""
