"""Promises of the command line and of the stack behind it."""
