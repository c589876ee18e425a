"""Streams whose messages are stored in tables of the warehouse, in the transaction of their position."""
