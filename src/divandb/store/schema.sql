-- The node's file. `place` is db << 40 | seq: a database's changes are one range of rowids, in order,
-- so that `_changes` is a scan, and a document that changes moves to the end of its database's range.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY
) WITHOUT ROWID;

-- The vector: all writes of `origin` up to `contained` are in this file. `reached` is the highest write that any
-- document holds, which may be ahead. `stamp` is the latest hybrid-logical-clock time of a write of this origin.
CREATE TABLE origin (
    origin    INTEGER PRIMARY KEY,
    slot      TEXT NOT NULL,
    contained INTEGER NOT NULL,
    reached   INTEGER NOT NULL,
    stamp     INTEGER NOT NULL
);

-- One row a database and generation; the highest generation of a name is its register. Rows of a dropped
-- generation stay until `freed`. `digest` is over all documents and registers (digests.py).
CREATE TABLE database (
    num        INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    generation INTEGER NOT NULL,
    dropped    INTEGER NOT NULL DEFAULT 0,
    freed      INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL,
    seq        INTEGER NOT NULL DEFAULT 0,
    mark_seq   INTEGER NOT NULL DEFAULT 0,
    purge_seq  INTEGER NOT NULL DEFAULT 0,
    docs       INTEGER NOT NULL DEFAULT 0,
    tombstones INTEGER NOT NULL DEFAULT 0,
    body_bytes INTEGER NOT NULL DEFAULT 0,
    old_bytes  INTEGER NOT NULL DEFAULT 0,
    options    TEXT NOT NULL DEFAULT '{}',
    digest     BLOB NOT NULL
);
CREATE UNIQUE INDEX database_by_name ON database (name, generation);

-- One row a document. flags: 1 deleted, 2 nothing to show (purged), 4 more than one leaf to show.
-- `body` is the winner's, as it is sent; `tree` is the leaves and the context (merge.Document).
CREATE TABLE doc (
    place INTEGER PRIMARY KEY,
    db    INTEGER NOT NULL,
    id    TEXT NOT NULL,
    flags INTEGER NOT NULL,
    rev   TEXT NOT NULL,
    body  BLOB NOT NULL,
    tree  BLOB NOT NULL
);
-- Covers `_all_docs` without documents. One row a (db, id): the writer sees to it.
CREATE INDEX doc_by_id ON doc (db, id, flags, rev);

-- Bodies of all other revisions: leaves that do not win (leaf = 1) and old ones until compaction.
CREATE TABLE body (
    db          INTEGER NOT NULL,
    id          TEXT NOT NULL,
    rev         TEXT NOT NULL,
    digest      BLOB NOT NULL,
    leaf        INTEGER NOT NULL,
    deleted     INTEGER NOT NULL,
    body        BLOB NOT NULL,
    attachments BLOB,
    PRIMARY KEY (db, id, rev, digest)
) WITHOUT ROWID;

-- The vector that held when the database's change `seq` was stored; at least every 100 changes.
CREATE TABLE mark (
    db     INTEGER NOT NULL,
    seq    INTEGER NOT NULL,
    vector BLOB NOT NULL,
    PRIMARY KEY (db, seq)
) WITHOUT ROWID;

-- A row for every oseq of this node's origins, in order, until published.
-- kind: 1 document (key = id), 2 register (key = kind/key), 3 database created, 4 database dropped.
CREATE TABLE outbox (
    n      INTEGER PRIMARY KEY AUTOINCREMENT, -- never used twice, though published rows go
    origin INTEGER NOT NULL,
    oseq   INTEGER NOT NULL,
    kind   INTEGER NOT NULL,
    db     INTEGER NOT NULL,
    key    TEXT NOT NULL,
    stamp  INTEGER NOT NULL
);

-- Last-writer-wins values. db 0 is the node itself. A value of NULL is a deletion that later stamps beat.
CREATE TABLE register (
    db     INTEGER NOT NULL,
    kind   TEXT NOT NULL,
    key    TEXT NOT NULL,
    value  BLOB,
    stamp  INTEGER NOT NULL,
    origin INTEGER NOT NULL,
    oseq   INTEGER NOT NULL,
    PRIMARY KEY (db, kind, key)
) WITHOUT ROWID;

-- Attachments by the SHA-256 of their stored bytes; without a name while one is being received.
CREATE TABLE blob (
    num        INTEGER PRIMARY KEY AUTOINCREMENT,
    name       BLOB UNIQUE,
    arriving   BLOB UNIQUE, -- one that comes in chunks from another node: its name, and its length in 8 bytes
    upload     BLOB UNIQUE, -- what one that a client sends goes by until then
    length     INTEGER NOT NULL,
    touched_ms INTEGER NOT NULL
);
-- place = blob.num << 24 | chunk number; every chunk but the last has the same size.
CREATE TABLE blob_chunk (
    place INTEGER PRIMARY KEY,
    data  BLOB NOT NULL
);
CREATE TABLE blob_use (
    db   INTEGER NOT NULL,
    id   TEXT NOT NULL,
    rev  TEXT NOT NULL,
    blob BLOB NOT NULL,
    PRIMARY KEY (db, id, rev, blob)
) WITHOUT ROWID;
CREATE INDEX blob_use_by_blob ON blob_use (blob);

-- Writes of others that were applied ahead of the vector: (after, upto] of an origin, not yet joined to it.
CREATE TABLE ahead (
    origin INTEGER NOT NULL,
    after  INTEGER NOT NULL,
    upto   INTEGER NOT NULL,
    PRIMARY KEY (origin, after)
) WITHOUT ROWID;

-- Events that could not be applied, whole, with the reason: holes in the vector, tried again at each start.
CREATE TABLE hole (
    n      INTEGER PRIMARY KEY,
    reason TEXT NOT NULL,
    event  BLOB NOT NULL UNIQUE
);

-- `_local` documents of others that vouch for writes which are not here yet: the latest of each key, with one
-- write, (origin, oseq), that it waits for.
CREATE TABLE waiting (
    db     INTEGER NOT NULL,
    key    TEXT NOT NULL,
    origin INTEGER NOT NULL,
    oseq   INTEGER NOT NULL,
    event  BLOB NOT NULL,
    PRIMARY KEY (db, key)
) WITHOUT ROWID;
CREATE INDEX waiting_by_write ON waiting (origin, oseq);

-- How far each board's partition has been applied, with the board's identity.
CREATE TABLE position (
    board     TEXT NOT NULL,
    topic     TEXT NOT NULL,
    partition INTEGER NOT NULL,
    identity  TEXT NOT NULL,
    next      INTEGER NOT NULL,
    PRIMARY KEY (board, topic, partition)
) WITHOUT ROWID;
