"""Infrastructure that every capability uses. No module here depends on a capability."""
