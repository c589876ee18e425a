"""The system on one machine: embedded PostgreSQL and broker, and the processes of Dagster."""
