"""From a message on Kafka to a stored row, through the whole product."""
