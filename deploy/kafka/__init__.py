"""A real Apache Kafka broker for tests and for trying out.

pom.xml    the jars; `.ci/setup kafka` copies them into `jars/`, which git ignores
broker     formats and runs brokers: one alone, or three together
__main__   `make kafka-up`: one in the foreground
"""
