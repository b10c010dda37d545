"""Replications that a node runs, between databases here and at any CouchDB.

    request.py      what is asked for: the two sides, the filter, its id            pure
    checkpoints.py  logs of both sides compared, and the next one made              pure
    batches.py      what to fetch of a batch, and bodies of bounded size            pure
    backoff.py      when to try again                                               pure
    placement.py    which slot's owner runs a document of `_replicator`             pure
    inside.py       requests to this node itself, without a network
    end.py          one side: CouchDB's HTTP API, by httpx
    run.py          one replication from its checkpoint on
    jobs.py         all that this node runs
    watch.py        documents of `_replicator` become jobs, and hear how they ended

Data goes one way: ``_changes`` of the source → ``_revs_diff`` of the target → ``_bulk_get`` of the
source → ``_bulk_docs`` of the target. A database here is spoken to by the same requests.
"""
