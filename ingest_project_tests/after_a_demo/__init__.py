"""What a person finds after `ingest demo`: what the UI shows, and what the documented commands do."""
