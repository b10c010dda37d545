// PouchDB's one-shot replication with the node: checkpoints, filters, rights.
import assert from 'node:assert/strict';
import test from 'node:test';
import {
  address, admin, allLeaves, call, failure, freshDatabase, range, uniqueName, until, within,
} from './harness.mjs';
import { local, PouchDB, remote } from './pouch.mjs';

const docs = (count, more = {}) =>
  range(count).map((n) => ({ _id: `d${String(n).padStart(4, '0')}`, n, kind: n % 3 ? 'a' : 'b', ...more }));

test('a second run transfers nothing, a third what is new: checkpoints are kept', async (t) => {
  const name = await freshDatabase(t, 'checkpoint');
  const [source, target] = [local(t, 'source'), local(t, 'target')];
  await source.bulkDocs(docs(300));

  const push = () => source.replicate.to(remote(name), { batch_size: 50 });
  const pull = () => target.replicate.from(remote(name), { batch_size: 40 });
  const first = await push();
  assert.equal(first.docs_written, 300);
  assert.equal(first.doc_write_failures, 0);
  const second = await push();
  assert.deepEqual([second.docs_read, second.docs_written], [0, 0]);
  assert.equal(second.ok, true);

  assert.equal((await pull()).docs_written, 300);
  const again = await pull();
  assert.deepEqual([again.docs_read, again.docs_written], [0, 0]);

  await source.bulkDocs(range(5).map((n) => ({ _id: `late${n}` })));
  const third = await push();
  assert.deepEqual([third.docs_read, third.docs_written], [5, 5]);
  assert.equal((await pull()).docs_written, 5);

  // the checkpoints are _local documents of the node, one for each direction
  const [status, list] = await call('GET', `${name}/_local_docs?include_docs=true`);
  assert.equal(status, 200);
  assert.equal(list.rows.length, 2);
  for (const { id, doc } of list.rows) {
    assert.match(id, /^_local\//);
    assert.equal(doc.replicator, 'pouchdb');
    assert.ok(doc.history.length > 0);
    assert.ok(doc.last_seq);
  }
  assert.equal((await remote(name).allDocs()).rows.length, 305, 'no checkpoint among the documents');
  assert.deepEqual(await allLeaves(target), await allLeaves(remote(name)));
});

test('an interrupted pull goes on from its checkpoint', async (t) => {
  const name = await freshDatabase(t, 'interrupted');
  await remote(name).bulkDocs(docs(400));
  const target = local(t, 'target');

  const half = target.replicate.from(remote(name), { batch_size: 50, batches_limit: 1 });
  const stopped = new Promise((resolve) => half.on('complete', resolve));
  half.on('change', () => half.cancel());
  const before = await within('the cancelled pull ends', stopped);
  assert.ok(before.docs_written >= 50 && before.docs_written < 400, `${before.docs_written}`);

  const rest = await target.replicate.from(remote(name), { batch_size: 50, batches_limit: 1 });
  assert.ok(rest.docs_written > 0 && rest.docs_read < 400, `${rest.docs_read} read again`);
  assert.equal((await target.info()).doc_count, 400);
});

test('a target that was dropped and made again gets everything, whatever the checkpoint said', async (t) => {
  const name = await freshDatabase(t, 'reborn');
  const source = local(t, 'source');
  await source.bulkDocs(docs(20));
  assert.equal((await source.replicate.to(remote(name))).docs_written, 20);
  await remote(name).destroy();
  assert.equal((await call('GET', name))[0], 404);
  assert.equal((await call('PUT', name))[0], 201);
  assert.equal((await remote(name).info()).doc_count, 0);
  assert.equal((await source.replicate.to(remote(name))).docs_written, 20);
});

test('doc_ids and selectors pull and push just those', async (t) => {
  const name = await freshDatabase(t, 'filtered');
  const source = remote(name);
  const odd = ['a/b', 'q?x=1&y#z', 'plus+space here', 'id-žluť 🐎', '"quoted"'];
  await source.bulkDocs([...docs(60), ...odd.map((_id) => ({ _id, kind: 'odd' }))]);
  await source.remove(await source.get('d0003'));

  const byId = local(t, 'by-id');
  const wanted = ['d0001', 'd0003', 'never-was', ...odd];
  const some = await byId.replicate.from(source, { doc_ids: wanted });
  assert.equal(some.docs_written, 2 + odd.length, 'with the tombstone');
  const ids = (await byId.allDocs()).rows.map((row) => row.id);
  assert.deepEqual(ids.sort(), ['d0001', ...odd].sort());
  for (const id of odd) assert.equal((await byId.get(id)).kind, 'odd');

  const bySelector = local(t, 'by-selector');
  const selector = { kind: 'b', n: { $gte: 30 } };
  const picked = await bySelector.replicate.from(source, { selector });
  assert.equal(picked.docs_written, 10);
  const { rows } = await bySelector.allDocs({ include_docs: true });
  assert.deepEqual(rows.map(({ doc }) => doc.n), [30, 33, 36, 39, 42, 45, 48, 51, 54, 57]);
  // the filter is part of the replication's identity: another one starts at the beginning
  assert.equal((await bySelector.replicate.from(source, { selector: { kind: 'odd' } })).docs_written, odd.length);
  assert.equal((await bySelector.replicate.from(source, { selector })).docs_read, 0);

  const back = await freshDatabase(t, 'filtered-back');
  assert.equal((await byId.replicate.to(remote(back), { doc_ids: ['a/b'] })).docs_written, 1);
  assert.deepEqual((await remote(back).allDocs()).rows.map((row) => row.id), ['a/b']);

  const bad = await failure(bySelector.replicate.from(source, { selector: 'not an object' }));
  assert.equal(bad.status ?? bad.result?.status, 400, JSON.stringify(bad));
});

test('a live pull by doc_ids shows only those, new ones too', async (t) => {
  const name = await freshDatabase(t, 'live-filter');
  const target = local(t, 'target');
  const pull = target.replicate.from(remote(name), { live: true, retry: true, doc_ids: ['yes', 'also'] });
  const ended = new Promise((resolve) => pull.on('complete', resolve).on('error', resolve));
  t.after(() => pull.cancel());
  await remote(name).bulkDocs([{ _id: 'yes' }, { _id: 'no' }]);
  await until('yes arrives', () => target.get('yes').catch(() => false));
  await remote(name).bulkDocs([{ _id: 'no2' }, { _id: 'also' }]);
  await until('also arrives', () => target.get('also').catch(() => false));
  assert.deepEqual((await target.allDocs()).rows.map((row) => row.id), ['also', 'yes']);
  pull.cancel();
  await within('the cancelled pull ends', ended);
});

test('revisions without their bodies in between travel, and so does what new_edits=false made', async (t) => {
  const name = await freshDatabase(t, 'history');
  const [source, target] = [local(t, 'source'), local(t, 'target')];
  let { rev } = await source.put({ _id: 'long', v: 0 });
  for (const v of range(30)) ({ rev } = await source.put({ _id: 'long', _rev: rev, v }));
  const forged = ['2-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', '2-bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'];
  await source.bulkDocs(forged.map((_rev) => ({
    _id: 'forged', _rev, _revisions: { start: 2, ids: [_rev.slice(2), 'c'.repeat(32)] },
  })), { new_edits: false });
  await source.replicate.to(remote(name));
  await target.replicate.from(remote(name));

  const doc = await remote(name).get('long', { revs: true, revs_info: true });
  assert.equal(doc._revisions.start, 31);
  assert.equal(doc._revisions.ids.length, 31);
  assert.equal(doc._revs_info[0].status, 'available');
  assert.deepEqual(doc._revs_info.slice(1).map((row) => row.status), Array(30).fill('missing'));
  const winner = await target.get('forged', { conflicts: true });
  assert.deepEqual([winner._rev, winner._conflicts], [forged[1], [forged[0]]]);
  assert.deepEqual(await allLeaves(target), await allLeaves(source));
  assert.deepEqual(await allLeaves(remote(name)), await allLeaves(source));
});

/** A user in `_users` with a name of its own; dropped at the end of the test. */
async function user(t, roles = []) {
  await call('PUT', '_users'); // a node that has it already answers 412
  const who = { name: uniqueName('user'), password: 'correct horse, battery: staple' };
  const path = `_users/org.couchdb.user:${who.name}`;
  const [status, body] = await call('PUT', path, { ...who, roles, type: 'user' });
  assert.equal(status, 201, JSON.stringify(body));
  t.after(() => call('DELETE', `${path}?rev=${body.rev}`));
  return who;
}

async function secure(name, security) {
  const [status, body] = await call('PUT', `${name}/_security`, security);
  assert.equal(status, 200, JSON.stringify(body));
}

test('a member replicates both ways, but may not write design documents', async (t) => {
  const name = await freshDatabase(t, 'member');
  const member = await user(t);
  const byRole = await user(t, ['readers']);
  await secure(name, {
    admins: { names: [], roles: [] }, members: { names: [member.name], roles: ['readers'] },
  });
  await remote(name).put({ _id: '_design/there', language: 'query' });

  const mine = local(t, 'mine');
  await mine.bulkDocs([...docs(30), { _id: '_design/mine', language: 'query' }]);
  const denied = [];
  const push = mine.replicate.to(remote(name, member));
  push.on('denied', (error) => denied.push(error));
  const pushed = await push;
  assert.equal(pushed.docs_written, 30);
  assert.equal(pushed.doc_write_failures, 1);
  assert.equal(denied.length, 1);
  assert.deepEqual([denied[0].id, denied[0].name], ['_design/mine', 'forbidden']);
  assert.equal((await failure(remote(name).get('_design/mine'))).status, 404);

  const theirs = local(t, 'theirs');
  const pulled = await theirs.replicate.from(remote(name, byRole));
  assert.equal(pulled.docs_written, 31);
  await theirs.get('_design/there');
  const security = await failure(remote(name, member).put({ _id: '_design/x' }));
  assert.equal(security.status, 403);
  assert.equal((await failure(remote(name, member).destroy())).status, 401, 'for server admins');
  assert.equal((await remote(name, member).info()).doc_count, 31);
});

test('without rights a replication fails with 401 or 403, and nothing is written', async (t) => {
  const name = await freshDatabase(t, 'closed');
  const [member, stranger] = [await user(t), await user(t)];
  await secure(name, { admins: {}, members: { names: [member.name], roles: [] } });
  await remote(name).bulkDocs(docs(3));
  const mine = local(t, 'mine');
  await mine.bulkDocs(docs(3, { mine: true }));

  // one request each: repeated wrong passwords lock an account for a while
  for (const who of [{ ...member, password: 'wrong' }, { name: uniqueName('unknown'), password: 'x' }]) {
    const get = await failure(remote(name, who).get('d0000'));
    assert.deepEqual([get.status, get.name], [401, 'unauthorized'], who.name);
  }
  const cases = [['nobody', null, 401, 'unauthorized'], ['a stranger', stranger, 403, 'forbidden']];
  for (const [label, who, status, error] of cases) {
    const get = await failure(remote(name, who).get('d0000'));
    assert.deepEqual([get.status, get.name], [status, error], `get: ${label}`);
    const put = await failure(remote(name, who).put({ _id: 'new' }));
    assert.deepEqual([put.status, put.name], [status, error], `put: ${label}`);
    const pull = await failure(mine.replicate.from(remote(name, who)));
    assert.equal(pull.status, status, `pull: ${label}: ${JSON.stringify(pull)}`);
    const push = await failure(mine.replicate.to(remote(name, who)));
    assert.equal(push.status, status, `push: ${label}: ${JSON.stringify(push)}`);
  }
  // a user who may not create databases
  const create = await failure(new PouchDB(address(uniqueName('not-mine'), member)).allDocs());
  assert.ok([401, 403].includes(create.status), JSON.stringify(create));

  assert.equal((await remote(name, member).allDocs()).rows.length, 3);
  assert.equal((await remote(name, admin).info()).doc_count, 3);
  assert.equal((await mine.info()).doc_count, 3);
});

test('rights that are taken away stop a push with a 403; given back, it goes on', async (t) => {
  const name = await freshDatabase(t, 'revoked');
  const member = await user(t);
  const open = { admins: {}, members: { names: [member.name], roles: [] } };
  await secure(name, open);
  const mine = local(t, 'mine');
  await mine.put({ _id: 'one' });
  const push = () => mine.replicate.to(remote(name, member));
  assert.equal((await push()).docs_written, 1);
  await secure(name, { admins: {}, members: { names: ['somebody-else'], roles: [] } });
  await mine.put({ _id: 'two' });
  assert.equal((await failure(push())).status, 403);
  await secure(name, open);
  assert.equal((await push()).docs_written, 1);
  assert.equal((await remote(name).info()).doc_count, 2);
});
