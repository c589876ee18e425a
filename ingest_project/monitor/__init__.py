"""What the system does, for people and for Prometheus: metrics, health and a page, from the ledger and the broker."""
