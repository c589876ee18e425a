"""The state after `make demo`, in the UI and through the documented commands."""
