"""How fast one node is, how far that is from a web server with the same bytes, and what a cluster
adds.

The way of a run: ``__main__`` reads the arguments; ``servers`` starts the node and nginx on one
core; ``cases`` fills a database and takes turns between the two; ``load`` makes the requests from
the other core; ``proc`` says what the server's processes spent; ``stats`` sums up and prints.
``documents`` makes the data and ``machine`` names the machine. Then ``replication`` does the same
for a cluster: ``paced`` writes at a rate, ``lag`` looks when the writes can be seen.

Standard library only, so that it measures any server that speaks the CouchDB API.
"""
