"""The system on one machine: embedded PostgreSQL and broker, and Dagster's processes, started and ended together."""
