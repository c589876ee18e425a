"""Eventhouse, read through Microsoft's own client from a server that speaks its protocol."""
