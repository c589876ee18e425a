"""Eventhouse (Kusto) as a source of attachment events."""
