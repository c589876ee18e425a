"""User activity: EnrichedEvents from Kafka to a Delta table, each offset exactly once, and statistics by the hour."""
