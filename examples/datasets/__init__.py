"""Two declared datasets and a declared stream: see README.md in this folder."""
