"""A private, real mongod for development and tests."""

from dispatcher.embedded.server import EmbeddedMongo, embedded_mongo

__all__ = ["EmbeddedMongo", "embedded_mongo"]
