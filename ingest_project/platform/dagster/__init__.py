"""Everything that touches Dagster beyond its public API."""
