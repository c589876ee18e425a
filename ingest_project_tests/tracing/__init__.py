"""Traces and lineage of whole journeys, and what they cost."""
