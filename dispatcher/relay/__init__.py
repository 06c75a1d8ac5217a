"""The relay: the one reader of the change stream, which publishes the change events to a topic of Kafka."""
