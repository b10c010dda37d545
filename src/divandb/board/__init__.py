"""Event Boards: durable logs that carry Write Events between nodes.

base              the ``EventBoard`` protocol, its errors and its limits: all that other parts know
memory            a board without disk or network, for tests and simulations
embedded          the client of the embedded board
kafka             the boards on Apache Kafka (``kafka_pen``, ``kafka_tail``, ``kafka_admin``,
                  ``kafka_client``)
source            one partition as an applier reads it

The embedded board itself, from the wire down to the disk:

embedded_server   listening, starting, stopping
wire              HTTP/1.1 connections, bounded; requests in, answers out
routes            which request asks the broker for what
broker            topics and partitions: group commit, waiting readers, retention
access            who may do what (Rule 3), and how a principal proves who it is
topics            what the board knows of each topic: identity, partitions, rights
log               one partition: segments of checksummed records, recovery, damage
records           the bytes of messages and records; pure
disk              files and fsync, as an argument

`docs/board.md` describes formats, endpoints and guarantees.
"""
