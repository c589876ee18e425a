"""Propose reader profiles and declarations of datasets for unknown files."""
