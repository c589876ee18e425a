"""The real servers that tests start, as pytest plugins."""
