"""Topics that are read in offset ranges."""
