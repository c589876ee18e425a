"""Letting go of what is long done."""
