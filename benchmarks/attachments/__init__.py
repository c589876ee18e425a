"""Benchmark of attachments: from events to stored files and results in Delta, with a local web server."""
