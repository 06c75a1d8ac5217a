"""Apache Kafka, for tests of features that the embedded broker does not have."""
