"""Kafka as the log: the relay publishes change events to a topic, and dispatchers read them from there."""
