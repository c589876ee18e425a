"""The measuring code of the benchmarks is correct."""
