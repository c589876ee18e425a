"""Topics that are read in offset ranges: what is planned, and the runs that read it."""
