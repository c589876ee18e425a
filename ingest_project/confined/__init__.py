"""Running code over a stranger's bytes in a process of its own: limited, killable, and without our secrets."""
