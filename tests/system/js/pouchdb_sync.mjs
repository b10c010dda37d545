// Two PouchDB databases in live two-way sync through one node.
import assert from 'node:assert/strict';
import test from 'node:test';
import { allLeaves, call, freshDatabase, noise, range, until } from './harness.mjs';
import { agreed, liveSync, local, remote } from './pouch.mjs';

/** Two local databases, the node's, and a way to go online and offline. */
async function mesh(t) {
  const name = await freshDatabase(t, 'sync');
  const [left, right, node] = [local(t, 'left'), local(t, 'right'), remote(name)];
  const databases = [left, right, node];
  let links = [];
  const offline = async () => {
    const closing = links;
    links = [];
    await Promise.all(closing.map((link) => link.stop()));
  };
  const online = () => {
    links = [liveSync(left, name), liveSync(right, name)];
  };
  t.after(offline);
  return { left, right, node, databases, online, offline };
}

/** All three databases hold the same leaves with the same ancestry and the same bytes. */
async function assertSameLeaves({ left, right, node }) {
  const held = await allLeaves(node);
  assert.deepEqual(await allLeaves(left), held);
  assert.deepEqual(await allLeaves(right), held);
  return held;
}

test('creates, updates and deletes travel both ways while the sync is live', async (t) => {
  const { left, right, node, databases, online, offline } = await mesh(t);
  online();

  const created = await left.put({ _id: 'a', from: 'left', words: 'žluťoučký kůň 🐎' });
  await right.put({ _id: 'b', from: 'right' });
  await agreed('both documents everywhere', databases);
  assert.equal((await right.get('a')).words, 'žluťoučký kůň 🐎');
  assert.equal((await left.get('b')).from, 'right');

  const updated = await right.put({ _id: 'a', _rev: created.rev, from: 'right, later' });
  await until('the update is on the left', async () => (await left.get('a'))._rev === updated.rev);
  await until('the update is on the node', async () => (await node.get('a'))._rev === updated.rev);

  const removed = await left.remove('b', (await left.get('b'))._rev);
  await until('b is gone on the right', () => right.get('b').then(() => false, (e) => e.status === 404));
  const stub = await node.get('b', { rev: removed.rev });
  assert.equal(stub._deleted, true);
  assert.equal((await node.info()).doc_count, 1);

  // a document that is deleted may come back, as a child of its tombstone
  const reborn = await right.put({ _id: 'b', from: 'the dead' });
  assert.match(reborn.rev, /^3-/);
  await agreed('b is back everywhere', databases);
  assert.equal((await left.get('b')).from, 'the dead');

  // straight into the node, behind the backs of both
  await node.bulkDocs(range(20).map((n) => ({ _id: `node-${n}`, n })));
  const everything = await agreed('what the node was given', databases);
  assert.equal(Object.keys(everything).length, 22);

  await offline();
  await assertSameLeaves({ left, right, node });
});

test('edits made on both sides while offline become the same conflicts everywhere', async (t) => {
  const { left, right, node, databases, online, offline } = await mesh(t);
  const ids = range(12).map((n) => `doc-${n}`);
  await left.bulkDocs(ids.map((_id) => ({ _id, text: 'as it was' })));
  online();
  const start = await agreed('the first state', databases);
  await offline();

  // on each document one edit on the left; on the right one, two or three, so that depths differ
  for (const [n, _id] of ids.entries()) {
    await left.put({ _id, _rev: start[_id][0], text: `left ${n}` });
    let rev = start[_id][0];
    for (const step of range(1 + (n % 3))) {
      ({ rev } = await right.put({ _id, _rev: rev, text: `right ${n} ${step}` }));
    }
    if (n % 4 === 0) await node.put({ _id, _rev: start[_id][0], text: `node ${n}` });
  }
  // deleted here, edited there: the edit wins, and the deletion stays as a leaf
  await left.put({ _id: 'dispute', text: 'left' });
  await right.put({ _id: 'dispute', text: 'right' });

  online();
  const seen = await agreed('the same winners and conflicts', databases);
  for (const [n, id] of ids.entries()) {
    const [winner, losers] = seen[id];
    assert.equal(losers.length, n % 4 === 0 ? 2 : 1, `${id}: ${losers}`);
    if (n % 3 > 0) assert.match(winner, new RegExp(`^${2 + (n % 3)}-`), 'the longest wins');
    const all = [winner, ...losers];
    const order = (rev) => rev.split('-').map((part, at) => (at ? part : part.padStart(5, '0'))).join();
    assert.equal(winner, all.toSorted((a, b) => (order(a) < order(b) ? 1 : -1))[0]);
    for (const rev of all) {
      const texts = await Promise.all(databases.map((db) => db.get(id, { rev })));
      assert.deepEqual(texts[1], texts[0]);
      assert.deepEqual(texts[2], texts[0]);
    }
  }
  assert.equal(seen.dispute[1].length, 1);
  await assertSameLeaves({ left, right, node });

  // resolve on both sides while live: the losers die, one side each
  for (const [n, id] of ids.entries()) {
    const side = n % 2 ? left : right;
    for (const rev of seen[id][1]) await side.remove(id, rev);
  }
  const settled = await agreed('resolved everywhere', databases);
  for (const id of ids) assert.deepEqual(settled[id], [seen[id][0], []]);
  assert.deepEqual(settled.dispute, seen.dispute, 'nobody touched that one');
  await offline();

  const held = await assertSameLeaves({ left, right, node });
  assert.equal(held['doc-0'].length, 3, 'the resolved conflicts stay as tombstones');
  const path = `${node.name.split('/').pop()}/doc-0?conflicts=true&deleted_conflicts=true`;
  const [, winner] = await call('GET', path);
  assert.equal(winner._conflicts, undefined);
  assert.equal(winner._deleted_conflicts.length, 2);
});

test('a deletion and an edit of one revision: the edit wins everywhere', async (t) => {
  const { left, right, node, databases, online, offline } = await mesh(t);
  const { rev } = await left.put({ _id: 'x', v: 1 });
  online();
  await agreed('the first state', databases);
  await offline();

  const before = await left.put({ _id: 'x', _rev: rev, v: 'soon gone' });
  const deletion = await left.remove('x', before.rev);
  const edit = await right.put({ _id: 'x', _rev: rev, v: 2 });
  // the deletion's branch is longer, and yet the live leaf wins
  online();
  await until('the edit is back on the left', () => left.get('x').then((d) => d._rev === edit.rev, () => false));
  await agreed('the edit everywhere', databases);
  await offline();
  for (const db of databases) {
    const doc = await db.get('x', { conflicts: true, deleted_conflicts: true });
    assert.equal(doc.v, 2);
    assert.equal(doc._conflicts, undefined);
  }
  const [, doc] = await call('GET', `${node.name.split('/').pop()}/x?deleted_conflicts=true`);
  assert.deepEqual(doc._deleted_conflicts, [deletion.rev]);
  await assertSameLeaves({ left, right, node });
});

test('attachments travel whole: put alone, inline, replaced, removed, in conflict', async (t) => {
  const { left, right, node, databases, online, offline } = await mesh(t);
  const text = Buffer.from('Příliš žluťoučký kůň úpěl ďábelské ódy.\n'.repeat(400));
  const binary = noise(2 * 1024 * 1024, 'two MiB');
  const small = Buffer.from([0, 1, 2, 253, 254, 255]);
  online();

  const first = await left.putAttachment('letter', 'notes/přání.txt', text, 'text/plain');
  const photo = await right.put({
    _id: 'photo',
    title: 'inline',
    _attachments: {
      'big.bin': { content_type: 'application/octet-stream', data: binary.toString('base64') },
      'small.png': { content_type: 'image/png', data: small.toString('base64') },
      empty: { content_type: 'text/plain', data: '' },
    },
  });
  await agreed('the attachments everywhere', databases);
  for (const db of databases) {
    assert.ok(text.equals(await db.getAttachment('letter', 'notes/přání.txt')));
    assert.ok(binary.equals(await db.getAttachment('photo', 'big.bin')));
    assert.ok(small.equals(await db.getAttachment('photo', 'small.png')));
    assert.equal((await db.getAttachment('photo', 'empty')).length, 0);
    const stubs = (await db.get('photo'))._attachments;
    assert.deepEqual(Object.keys(stubs).sort(), ['big.bin', 'empty', 'small.png']);
    assert.equal(stubs['big.bin'].length, binary.length);
    assert.equal(stubs['small.png'].content_type, 'image/png');
  }
  const letter = (await node.get('letter'))._attachments['notes/přání.txt'];
  assert.equal(letter.length, text.length, 'the plain length, however it is stored');

  // an update of the body keeps them as stubs; a removal and a replacement travel
  const doc = await left.get('photo');
  await left.put({ ...doc, title: 'a new title' });
  await right.putAttachment('letter', 'second.txt', first.rev, Buffer.from('two'), 'text/plain');
  await agreed('the new title', databases);
  const titled = await right.get('photo');
  assert.notEqual(titled._rev, photo.rev);
  const without = await right.removeAttachment('photo', 'small.png', titled._rev);
  const replaced = await right.putAttachment(
    'photo', 'big.bin', without.rev, binary.subarray(0, 70_000), 'application/octet-stream',
  );
  await until('the replacement is on the left', async () => (await left.get('photo'))._rev === replaced.rev);
  await agreed('the replacement', databases);
  assert.deepEqual(Object.keys((await node.get('photo'))._attachments).sort(), ['big.bin', 'empty']);
  assert.ok(binary.subarray(0, 70_000).equals(await left.getAttachment('photo', 'big.bin')));

  // two sides attach different files offline, to one document under two names, to another under one
  await offline();
  await left.putAttachment('photo', 'of the left', replaced.rev, noise(5000, 'l'), 'image/jpeg');
  await right.putAttachment('photo', 'of the right', replaced.rev, noise(5000, 'r'), 'image/jpeg');
  const { _rev: base } = await left.get('letter');
  const mine = await left.putAttachment('letter', 'same name', base, noise(5000, 'lm'), 'image/jpeg');
  const theirs = await right.putAttachment('letter', 'same name', base, noise(5000, 'rm'), 'image/jpeg');
  online();
  const seen = await agreed('conflicts of attachments', databases);
  assert.deepEqual([seen.photo[1].length, seen.letter[1].length], [1, 1]);
  await offline();
  const held = await allLeaves(node);
  assert.deepEqual((await allLeaves(left)).photo, held.photo);
  assert.deepEqual((await allLeaves(right)).photo, held.photo);
  // PouchDB pulls attachments of a losing revision by name, without its revision, and so gets the
  // winner's; but each pushed its own, and the node must have kept both
  for (const [{ rev }, seed] of [[mine, 'lm'], [theirs, 'rm']]) {
    assert.ok(noise(5000, seed).equals(await node.getAttachment('letter', 'same name', { rev })), rev);
  }
});

test('500 documents in bulk and a storm of edits from three sides lose nothing', async (t) => {
  const { left, right, node, databases, online, offline } = await mesh(t);
  online();
  const docs = range(500).map((n) => ({
    _id: `bulk-${String(n).padStart(4, '0')}`, n, tags: [n % 7, `t${n % 11}`], deep: { list: [n] },
  }));
  const written = await left.bulkDocs(docs);
  assert.equal(written.filter((row) => row.ok).length, 500);
  await until('500 on the right', async () => (await right.info()).doc_count === 500);
  assert.equal((await node.info()).doc_count, 500);

  // each side edits and deletes what it happens to have; conflicts are welcome
  const edit = async (db, step, label) => {
    const { rows } = await db.allDocs({ include_docs: true });
    const chosen = rows.filter((row, at) => at % step === 0).map((row) => row.doc);
    const changed = chosen.map((doc, at) => (at % 5 === 4 ? { ...doc, _deleted: true } : { ...doc, label }));
    return (await db.bulkDocs(changed)).filter((row) => row.ok);
  };
  const accepted = await Promise.all([edit(left, 3, 'left'), edit(right, 4, 'right'), edit(node, 5, 'node')]);
  assert.ok(accepted.every((rows) => rows.length > 0));
  await agreed('the storm is over', databases);
  await offline();

  const held = await assertSameLeaves({ left, right, node });
  for (const { id, rev } of accepted.flat()) {
    const [start, hash] = rev.split('-');
    const known = held[id].some((leaf) => {
      const revisions = JSON.parse(leaf)[2];
      return revisions.ids[revisions.start - Number(start)] === hash;
    });
    assert.ok(known, `${id} ${rev} was accepted and is in no ancestry`);
  }
});
