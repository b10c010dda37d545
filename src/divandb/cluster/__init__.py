"""The nodes among themselves.

trust        credentials for peer links
sessions     session tokens: where a client's writes are
progress     what this node contains, who waits for it, and how old its view is
messages     what nodes say to each other, as bytes
peers        heartbeats: who is there, what they contain; what is missing here
needs        what a session wrote elsewhere: waited for, fetched
courier      writes on their way to a master
drain        a node taken out of service by plan
desk         what a master waits for before a write, and after
fetching     catch-up from a peer
proving      what nodes ask each other to see whether they hold the same
witness      the answers
verifier     asks, all the time, and mends
scanner      has all rows read now and then
findings     what was found, counted and kept
snapshots    copying a peer's file
blobs        attachments whose bytes are not here, fetched
relay        others' events on to the Replicas' Board
estate       what former owners of a slot left, published
closer       origins of a slot that have ended, told and closed
versions     how far the group is with new versions of views
removal      may a member be removed for good?
topics       the names of the boards' topics, and who may open them
"""
