"""Outbound HTTP to untrusted addresses: host rules, pinned connections, limits, downloads."""
