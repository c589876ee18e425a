"""Declared datasets, from a declaration and a message to stored rows."""
