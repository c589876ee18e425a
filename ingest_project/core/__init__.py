"""Building blocks that every layer uses: errors, settings, logging, keys, console, local files."""
