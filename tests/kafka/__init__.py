"""Apache Kafka, for the tests of what the embedded broker does not have."""
