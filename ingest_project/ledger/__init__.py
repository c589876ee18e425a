"""What is known of each polling job, file and message sent: its state, its attempts, and where it came from.

Everything here is idempotent and happens in bulk: the same call a second time leaves the same state.
"""
