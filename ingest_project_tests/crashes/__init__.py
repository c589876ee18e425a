"""Killed between two steps, run again, and counted."""
