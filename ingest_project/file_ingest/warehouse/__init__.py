"""Readings, metrics and quarantined rows in PostgreSQL or SQLite."""
