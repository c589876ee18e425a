"""Bytes to rows: csv and Excel, in the layout that a reader profile describes."""
