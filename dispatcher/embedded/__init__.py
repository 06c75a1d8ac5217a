"""A private, real mongod and a private Kafka broker, for development and tests."""

from dispatcher.embedded.broker import EmbeddedBroker, embedded_broker
from dispatcher.embedded.server import EmbeddedMongo, embedded_mongo

__all__ = ["EmbeddedBroker", "EmbeddedMongo", "embedded_broker", "embedded_mongo"]
