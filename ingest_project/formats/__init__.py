"""A file's bytes become canonical readings: csv and Excel, in whatever layout a reader profile describes."""
