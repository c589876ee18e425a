"""Eventhouse (Kusto) as a source of events: each row of a domain's table becomes one event, exactly once."""
