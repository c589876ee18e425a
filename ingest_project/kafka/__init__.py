"""Kafka as the rest of the project sees it: bounded reads at a known position, confirmed writes, dead letters."""
