"""Readers of the formats of files: delimited text, workbooks, JSON and Parquet, and what they are packed in."""
