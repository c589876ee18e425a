"""What capabilities are built on. Nothing here knows a capability by name."""
