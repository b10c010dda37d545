// PouchDB with databases in memory, and the node as a remote database.
import assert from 'node:assert/strict';
import PouchDB from 'pouchdb';
import memory from 'pouchdb-adapter-memory';
import { address, admin, uniqueName, until, within } from './harness.mjs';

PouchDB.plugin(memory);

/** A local database in memory that the test drops at its end. */
export function local(t, prefix) {
  const db = new PouchDB(uniqueName(prefix), { adapter: 'memory' });
  t.after(() => db.destroy());
  return db;
}

/** The node's database `name`, as the user `who` (null: nobody). */
export function remote(name, who = admin) {
  return new PouchDB(address(name, who), { skip_setup: true });
}

/** Id, winner and live conflicts of each document that is not deleted. */
async function shown(db) {
  const { rows } = await db.allDocs({ include_docs: true, conflicts: true });
  return Object.fromEntries(
    rows.map(({ id, value, doc }) => [id, [value.rev, (doc._conflicts ?? []).toSorted()]]),
  );
}

/** All leaf revisions of each document, deleted ones too, as the changes feed tells them. */
async function leafRevisions(db) {
  const { results } = await db.changes({ since: 0, style: 'all_docs' });
  // by id: pages of a feed that come from several nodes of a cluster may tell a change twice
  const leaves = new Map(results.map(({ id, changes }) => [id, changes.map(({ rev }) => rev).sort()]));
  return [...leaves].sort(([a], [b]) => (a < b ? -1 : 1));
}

/**
 * Wait until all databases have the same leaf revisions; then they must show the same winners and
 * conflicts, which are returned.
 */
export async function agreed(what, databases) {
  let held;
  try {
    await until(what, async () => {
      held = await Promise.all(databases.map(leafRevisions));
      return new Set(held.map((each) => JSON.stringify(each))).size === 1;
    });
  } catch (error) {
    assert.deepEqual(held.slice(1), held.slice(0, -1), error.message);
    throw error;
  }
  const [first, ...others] = await Promise.all(databases.map(shown));
  for (const other of others) assert.deepEqual(other, first, what);
  return first;
}

/** A live sync of `db` with the node; `stop()` ends it and fails if it saw an error. */
export function liveSync(db, name, options = {}) {
  const sync = db.sync(remote(name), { live: true, retry: true, ...options });
  const errors = [];
  sync.on('denied', (denied) => errors.push(denied));
  sync.on('error', (error) => errors.push(error));
  return {
    sync,
    async stop() {
      const complete = new Promise((resolve) => {
        sync.on('complete', resolve);
        sync.on('error', resolve);
      });
      sync.cancel();
      await within('the cancelled sync ends', complete);
      assert.deepEqual(errors, []);
    },
  };
}

export { PouchDB };
