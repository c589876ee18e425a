"""What each topic carries, and what it must not."""
