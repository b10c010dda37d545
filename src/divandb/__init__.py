"""DivanDB, a document database that speaks the CouchDB HTTP API. The way of a write:

 1. ``cli.up``, ``layout``, ``supervisor``: processes are started; ``server`` puts a node together
 2. ``httpd.protocol``, ``httpd.app``: a request comes in, anywhere; ``httpd.lane``: a plain one
 3. ``httpd.authenticator``, ``auth``: who is asking, and what they may do; ``document``: the JSON
 4. ``entry``: all that is open is chosen, id, parent, revision, stamp; ``commands`` carry it on
 5. ``cluster.courier``: from a replica to its master; ``cluster.desk``: is what it builds on here?
 6. ``store.writer``, ``master``: a bounded queue, one transaction for many; check, dot, ``merge``
 7. ``store.ledger``: document, marks and outbox row; commit and fsync; then the client hears of it
 8. ``publisher``: the outbox as ``event``s onto the boards (``board``), in order, at least once
 9. ``applier``, ``store.arrivals``: other masters merge it; ``cluster.relay``: on to their replicas
10. ``catalog``, ``replica``: reads show it and feeds wake, on every node

``node`` says which of this a master does and which a replica. What a board does not bring,
``cluster.peers`` notices and ``cluster.fetching`` gets (``store.catchup``); a new node first copies
a file (``joining``, ``cluster.snapshots``). Large attachments go ahead of their document
(``attachments``). A read is answered by ``replica``; ``httpd.standing`` says how old it may be.

Beside the way stand ``store.upkeep`` (compaction, reclaiming), ``settings``, ``config`` (bounds),
``telemetry``, and the pure ``revtree``, ``vector``, ``closings``, ``cursor``, ``packing`` and
``mango``; queries (``finder``, ``viewer``) and what design documents hold (``views``, ``designs``,
``judge``); only ``clock`` asks for time and chance; ``closest`` says who is near; ``errors`` is all
that a client can be told. ``client`` is for users' programs. Imports point down this way only: see
``[tool.importlinter]`` in pyproject.toml.
"""
