"""The contract of every topic: one module a message, decoded strictly, encoded canonically."""
