"""What the benchmarks measure by must itself be right."""
