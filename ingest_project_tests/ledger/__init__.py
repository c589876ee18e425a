"""Promises of the ledger, on both databases."""
