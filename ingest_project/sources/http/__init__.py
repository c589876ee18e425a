"""Web listings as a source."""
