"""Bytes in folders and buckets, and the addresses of such places."""
