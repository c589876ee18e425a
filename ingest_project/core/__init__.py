"""Building blocks without I/O that every layer uses: errors, settings, logging, keys."""
