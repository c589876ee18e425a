"""Kafka: bounded reads at a known position, confirmed writes, exactly-once publishing, dead letters."""
