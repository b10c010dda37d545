"""DivanDB, a document database that speaks the CouchDB HTTP API. The way of a write:

 1. ``cli.up``, ``supervisor``, ``server``: the node is started, and its parts are put together
 2. ``httpd.protocol``, ``httpd.app``: a request comes in; ``httpd.lane`` takes the plain ones
 3. ``httpd.authenticator``, ``auth``: who is asking, and what they may do
 4. ``httpd.documents``, ``httpd.bulk``: what is asked for; ``document`` checks the JSON
 5. ``attachments``: a large attachment goes ahead, chunk by chunk
 6. ``entry``: all that is open is chosen, id, parent, revision, stamp; ``commands`` carry it on
 7. ``store.writer``: it waits in a bounded queue, and shares a transaction with its neighbours
 8. ``master``: the parent still stands? the write gets its dot, and ``merge`` the new leaves
 9. ``store.documents``, ``store.ledger``: rows, marks and the outbox row; commit and fsync
10. ``catalog``, ``replica``: reads show it, feeds wake, and the client hears of it

A read is answered by ``replica``. Beside the way stand ``store.upkeep`` (compaction, reclaiming),
``settings``, ``config`` (bounds), ``telemetry``, and the pure ``revtree``, ``vector``, ``cursor``,
``packing`` and ``mango``. ``clock`` alone asks for time and chance; ``errors`` is all that a client
can be told. Imports point down this way only: see ``[tool.importlinter]`` in pyproject.toml.
"""
