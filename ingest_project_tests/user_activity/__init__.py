"""User activity: from events on a topic to rows of a Delta table, each offset exactly once."""
