"""File events to stored, checked and traceable readings."""
