"""The relay: it alone reads the change stream, and publishes the change events to a topic of Kafka."""
