"""The csv reader."""
