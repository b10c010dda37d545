"""One SQLite file: everything a node knows, so that one transaction covers it.

schema.sql      the tables and what each is for
file            opening the file, its identity, its connections
spares          connections for reading that are kept for who reads next
ledger          what one group commit changes, and how it becomes rows
outbox          this node's writes as Write Events
arrivals        other nodes' writes, into the file
positions       how far boards were read
succession      what is needed when the slot changes hands
endings         where origins ended
membership      who is a member no more
catchup         what lies beyond a vector
snapshot        a copy of the file for another node
writer          the one thread that writes, and the group commit
documents       reading documents and bodies
changes         reading changes by place, marks, portable cursors' places
listing         documents by id: the rows of `_all_docs`
databases       names, generations, counters
digests         one number over all that a database holds
tally           rows that are counted while they change: what the writer tells the count
scanning        reading all rows: are they what was written?
soundness       what is wrong with a row by itself
proofs          what a node holds, in numbers that others compare with theirs
mending         taking from another node what differs or is damaged here
indexes.sql, indexes      ordered entries that documents give, in a file of their own
queries         documents for a query, by id or by an index's entries
rows            rows of a view: an index's entries between two places, and their sums
registers       last-writer-wins values: `_security`, `_local` documents, settings
blobs           attachments by name, in chunks
chores          what the upkeep does next
upkeep          compaction and reclaiming, in small steps
checkpoints     the write-ahead log, copied into the file off the writer's thread
"""
