"""Telling somebody that something fails."""
