"""Alembic environment of the warehouse."""
