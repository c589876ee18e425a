"""Polling jobs to file events: list a source, and publish each new file once."""
