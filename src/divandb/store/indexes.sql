-- The node's indexes: a file of its own, made from the node's file, and made again when it is gone.

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value ANY
) WITHOUT ROWID;

-- One row an index of a database: all changes up to `seq` are in it. Until `fresh` no document can have been in it
-- before. Without a signature it is about to be removed. `name` is the design document that it was begun for.
CREATE TABLE built (
    num       INTEGER PRIMARY KEY AUTOINCREMENT,
    db        INTEGER NOT NULL,
    signature BLOB,
    seq       INTEGER NOT NULL,
    fresh     INTEGER NOT NULL,
    name      TEXT NOT NULL,
    UNIQUE (db, signature)
);

-- The index that answers for a design document until another one takes its place; `about` is what a reader must know
-- to use it when the design document has changed.
CREATE TABLE used (
    db    INTEGER NOT NULL,
    name  TEXT NOT NULL,
    built INTEGER NOT NULL,
    about BLOB NOT NULL,
    PRIMARY KEY (db, name)
) WITHOUT ROWID;

-- What documents gave: `n` numbers what one of them gave. `number` is the value, where that is a number.
CREATE TABLE entry (
    built  INTEGER NOT NULL,
    key    BLOB NOT NULL,
    id     TEXT NOT NULL,
    n      INTEGER NOT NULL,
    number ANY,
    value  BLOB,
    PRIMARY KEY (built, key, id, n)
) WITHOUT ROWID;
CREATE INDEX entry_by_document ON entry (built, id);

-- How many entries there are in a part of an index: those whose keys begin with `part`.
CREATE TABLE held (
    built   INTEGER NOT NULL,
    part    BLOB NOT NULL,
    entries INTEGER NOT NULL,
    PRIMARY KEY (built, part)
) WITHOUT ROWID;
