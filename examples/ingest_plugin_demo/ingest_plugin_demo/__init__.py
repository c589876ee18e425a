"""A reader of record files and a source of tar archives, as a package of its own."""
