"""Polling jobs."""
