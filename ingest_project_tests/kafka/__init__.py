"""Kafka against Apache Kafka itself and against the embedded broker."""
