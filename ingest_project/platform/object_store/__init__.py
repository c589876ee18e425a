"""One store of bytes with three back ends, and the landing and quarantine stores over it."""
