"""The way of an attachment, from its event to the Delta table."""
