"""Outbound HTTP to addresses that come from strangers: what may be contacted, how, and one file downloaded."""
