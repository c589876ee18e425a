"""A real browser: its programs, and a window in which tests read what a person would."""
