"""The steps of a file: landed, read, checked, stored and reported."""
