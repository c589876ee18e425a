"""What a person finds after `make demo`: what the UI shows, and what the documented commands do."""
