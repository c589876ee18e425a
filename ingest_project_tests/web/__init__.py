"""Promises of outbound HTTP: what is contacted, what never is, and what a download leaves behind."""
