"""The contract of every topic: one module per message, decoded strictly, encoded canonically."""
