"""Polling jobs to file events: look in a source, and announce each new file once."""
