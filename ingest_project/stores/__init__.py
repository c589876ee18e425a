"""Where data are kept: bytes as they came, rows in the warehouse, and what was refused."""
