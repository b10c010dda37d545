// What nano offers, except for views, Mango and replication, which come later.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import test from 'node:test';
import Nano from 'nano';
import {
  address, admin, call, failure, freshDatabase, noise, origin, range, sleep, uniqueName, until, within,
} from './harness.mjs';

const nano = Nano(address());

async function fresh(t, prefix) {
  const name = await freshDatabase(t, prefix);
  return { name, db: nano.use(name) };
}

/** nano's error has the status, CouchDB's error and reason, and the reason as its message. */
async function refused(promise, statusCode, error, reason) {
  const thrown = await failure(promise);
  assert.deepEqual([thrown.statusCode, thrown.error], [statusCode, error], thrown.message);
  if (reason !== undefined) assert.equal(thrown.reason, reason);
  assert.equal(thrown.message, thrown.reason);
  assert.equal(thrown.scope, 'couch');
  assert.equal(thrown.errid, 'non_200');
  return thrown;
}

async function readAll(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks);
}

test('the server: info, uuids, session', async () => {
  const info = await nano.info();
  assert.equal(info.couchdb, 'Welcome');
  assert.match(info.version, /^3\./);
  assert.ok(Array.isArray(info.features));
  assert.ok(info.uuid && info.vendor);
  const { uuids } = await nano.uuids(7);
  assert.equal(new Set(uuids).size, 7);
  for (const uuid of uuids) assert.match(uuid, /^[0-9a-f]{32}$/);
  const session = await nano.session();
  assert.equal(session.ok, true);
  assert.equal(session.userCtx.name, admin.name);
  assert.deepEqual(session.userCtx.roles, ['_admin']);
  assert.equal(session.info.authenticated, 'default');
});

test('databases: create, list, get, destroy, and what is refused', async (t) => {
  const name = uniqueName('nano+db/$()_');
  t.after(() => call('DELETE', encodeURIComponent(name)));
  assert.deepEqual(await nano.db.create(name), { ok: true });
  await refused(
    nano.db.create(name), 412, 'file_exists', 'The database could not be created, the file already exists.',
  );
  assert.ok((await nano.db.list()).includes(name));
  const streamed = JSON.parse(await readAll(await nano.db.listAsStream()));
  assert.ok(streamed.includes(name));
  const info = await nano.db.get(name);
  assert.equal(info.db_name, name);
  assert.deepEqual([info.doc_count, info.doc_del_count, info.compact_running], [0, 0, false]);
  for (const size of ['file', 'external', 'active']) assert.equal(typeof info.sizes[size], 'number');
  assert.ok('update_seq' in info && 'instance_start_time' in info && 'props' in info);
  assert.deepEqual(await nano.db.destroy(name), { ok: true });
  await refused(nano.db.destroy(name), 404, 'not_found', 'Database does not exist.');
  await refused(nano.db.get(name), 404, 'not_found', 'Database does not exist.');
  await refused(nano.use(name).get('x'), 404, 'not_found', 'Database does not exist.');
  assert.ok(!(await nano.db.list()).includes(name));
  for (const bad of ['Upper', '1first', '_hidden', 'sp ace']) {
    await refused(nano.db.create(bad), 400, 'illegal_database_name');
  }
});

test('documents: insert, get, head, destroy, with odd names', async (t) => {
  const { db } = await fresh(t, 'nano-docs');
  const posted = await db.insert({ without: 'a name' });
  assert.match(posted.id, /^[0-9a-f]{32}$/);
  for (const id of ['plain', 'a/b', 'žluť 🐎', 'q?a=1&b#c', 'plus + space', '_design/d', '_local/l']) {
    const made = await db.insert({ n: 1 }, id);
    assert.deepEqual([made.ok, made.id], [true, id]);
    assert.deepEqual(await db.get(id), { _id: id, _rev: made.rev, n: 1 });
    const next = await db.insert({ _rev: made.rev, n: 2 }, id);
    assert.notEqual(next.rev, made.rev);
    await db.destroy(id, next.rev);
    await refused(db.get(id), 404, 'not_found', id.startsWith('_local') ? 'missing' : 'deleted');
  }
  const { rev } = await db.insert({ v: 1 }, 'doc');
  await refused(db.insert({ v: 2 }, 'doc'), 409, 'conflict', 'Document update conflict.');
  await refused(db.insert({ v: 2, _rev: '7-abc' }, 'doc'), 409, 'conflict');
  await refused(db.insert({ v: 2, _rev: 'nonsense' }, 'doc'), 400, 'bad_request', 'Invalid rev format');
  await refused(db.insert({ _unknown: 1 }, 'other'), 400, 'doc_validation');
  await refused(db.insert([1], 'other'), 400, 'bad_request', 'Document must be a JSON object');
  await refused(db.destroy('doc', '1-abc'), 409, 'conflict');
  await refused(db.get('never'), 404, 'not_found', 'missing');
  const head = await db.head('doc');
  assert.equal(head.etag, `"${rev}"`);
  assert.equal((await failure(db.head('never'))).statusCode, 404);
  const full = await db.get('doc', { revs_info: true, revs: true });
  assert.deepEqual(full._revs_info, [{ rev, status: 'available' }]);
  assert.deepEqual(full._revisions, { start: 1, ids: [rev.slice(2)] });
  await db.insert({ _id: 'forged', _rev: '3-abc' }, { docName: 'forged', new_edits: false });
  assert.equal((await db.get('forged'))._rev, '3-abc');
});

test('copies, by the request that nano leaves to its users', async (t) => {
  const { name, db } = await fresh(t, 'nano-copy');
  const { rev } = await db.insert({ v: 1, _attachments: { a: { content_type: 'text/plain', data: 'aGk=' } } }, 'from');
  const copy = (destination) => call('COPY', `${name}/from`, undefined, { headers: { destination } });
  const [status, made] = await copy('to');
  assert.equal(status, 201);
  assert.equal((await db.get('to')).v, 1);
  assert.equal((await db.attachment.get('to', 'a')).toString(), 'hi');
  assert.equal((await copy('to'))[0], 409);
  await db.insert({ _rev: rev, v: 2 }, 'from');
  const [again] = await copy(`to?rev=${made.rev}`);
  assert.equal(again, 201);
  assert.equal((await db.get('to')).v, 2);
});

test('bulk, list, fetch, fetchRevs, streams', async (t) => {
  const { db } = await fresh(t, 'nano-bulk');
  const docs = range(250).map((n) => ({ _id: `k${String(n).padStart(3, '0')}`, n }));
  const rows = await db.bulk({ docs });
  assert.equal(rows.length, 250);
  assert.ok(rows.every((row, n) => row.ok && row.id === docs[n]._id));
  const repeated = await db.bulk({ docs: docs.slice(0, 2) });
  assert.deepEqual(repeated.map(({ id, error, reason }) => [id, error, reason]), [
    ['k000', 'conflict', 'Document update conflict.'], ['k001', 'conflict', 'Document update conflict.'],
  ]);
  await refused(db.bulk({ no: 'docs' }), 400, 'bad_request');
  const list = await db.list({ include_docs: true, startkey: 'k010', endkey: 'k019', limit: 3, skip: 2 });
  assert.deepEqual(list.rows.map((row) => row.doc.n), [12, 13, 14]);
  assert.equal(list.total_rows, 250);
  assert.equal((await db.list()).rows.length, 250);
  const streamed = JSON.parse(await readAll(await db.listAsStream({ include_docs: true })));
  assert.deepEqual(streamed.rows.map((row) => row.doc.n), range(250));
  const fetched = await db.fetch({ keys: ['k249', 'none', 'k000'] });
  assert.deepEqual(fetched.rows.map((row) => row.doc?.n ?? row.error), [249, 'not_found', 0]);
  const revs = await db.fetchRevs({ keys: ['k003'] });
  assert.deepEqual(revs.rows, [{ id: 'k003', key: 'k003', value: { rev: rows[3].rev } }]);
  await db.bulk({ docs: rows.map(({ id, rev }) => ({ _id: id, _rev: rev, _deleted: true })) });
  const info = await db.info();
  assert.deepEqual([info.doc_count, info.doc_del_count], [0, 250]);
  assert.deepEqual(await db.compact(), { ok: true });
  await until('the compaction ends', async () => !(await db.info()).compact_running);
});

test('attachments: insert, get, getAsStream, destroy, errors', async (t) => {
  const { db } = await fresh(t, 'nano-att');
  const text = 'příliš žluťoučký kůň\n'.repeat(500);
  const binary = noise(2 * 1024 * 1024, 'nano');
  const first = await db.attachment.insert('doc', 'a.txt', text, 'text/plain');
  assert.equal(first.ok, true);
  const second = await db.attachment.insert('doc', 'b.bin', binary, 'application/octet-stream', { rev: first.rev });
  await refused(db.attachment.insert('doc', 'c', text, 'text/plain'), 409, 'conflict');
  assert.equal((await db.attachment.get('doc', 'a.txt')).toString(), text);
  assert.ok(binary.equals(await db.attachment.get('doc', 'b.bin')));
  assert.ok(binary.equals(await readAll(db.attachment.getAsStream('doc', 'b.bin'))));
  assert.equal((await readAll(db.attachment.getAsStream('doc', 'a.txt'))).toString(), text);
  assert.equal((await db.attachment.get('doc', 'a.txt', { rev: first.rev })).toString(), text);
  await refused(db.attachment.get('doc', 'nope'), 404, 'not_found', 'Document is missing attachment');
  await refused(db.attachment.get('nope', 'a.txt'), 404, 'not_found', 'missing');
  const [broken] = await once(db.attachment.getAsStream('doc', 'nope'), 'error');
  assert.equal(broken.statusCode, 404);
  const third = await db.attachment.destroy('doc', 'a.txt', { rev: second.rev });
  assert.deepEqual(Object.keys((await db.get('doc'))._attachments), ['b.bin']);
  assert.notEqual(third.rev, second.rev);
  await refused(db.attachment.destroy('doc', 'a.txt', { rev: first.rev }), 409, 'conflict');
});

test('multipart: a document with several attachments in one request, and back', async (t) => {
  const { db } = await fresh(t, 'nano-multi');
  const files = [
    { name: 'one.txt', data: 'first\r\n--not-a-boundary\r\n', content_type: 'text/plain' },
    { name: 'two.bin', data: noise(300_000, 'multi'), content_type: 'application/octet-stream' },
    { name: 'three.json', data: '{"a":1}', content_type: 'application/json' },
  ];
  const { rev } = await db.multipart.insert({ title: 'several' }, files, 'doc');
  const doc = await db.get('doc');
  assert.equal(doc.title, 'several');
  assert.deepEqual(Object.keys(doc._attachments).sort(), ['one.txt', 'three.json', 'two.bin']);
  for (const { name, data, content_type: type } of files) {
    assert.ok(Buffer.from(data).equals(Buffer.from(await db.attachment.get('doc', name))), name);
    assert.equal(doc._attachments[name].content_type, type);
    assert.equal(doc._attachments[name].length, Buffer.byteLength(data));
  }
  const whole = Buffer.from(await db.multipart.get('doc'), 'latin1').toString('latin1');
  assert.match(whole, /^(\r\n)?--/);
  assert.match(whole, /"follows":true/);
  assert.match(whole, /Content-Disposition: attachment; filename="two\.bin"/i);
  const added = { name: 'four', data: 'x', content_type: 'text/plain' };
  const stubs = (await db.get('doc'))._attachments;
  await db.multipart.insert({ _rev: rev, title: 'more', _attachments: stubs }, [added], 'doc');
  assert.equal(Object.keys((await db.get('doc'))._attachments).length, 4);
  assert.ok(files[1].data.equals(await db.attachment.get('doc', 'two.bin')));
  await refused(db.multipart.insert({ v: 1 }, files, 'doc'), 409, 'conflict');
});

test('changes, as a list, as a stream, and by the changes reader', async (t) => {
  const { name, db } = await fresh(t, 'nano-changes');
  await db.bulk({ docs: range(120).map((n) => ({ _id: `c${n}`, n })) });
  const list = await db.changes({ limit: 50, include_docs: true });
  assert.equal(list.results.length, 50);
  assert.equal(list.pending, 70);
  const rest = await nano.db.changes(name, { since: list.last_seq });
  assert.equal(new Set([...list.results, ...rest.results].map((row) => row.id)).size, 120);
  const stream = JSON.parse(await readAll(db.changesAsStream({ since: 0 })));
  assert.equal(stream.results.length, 120);

  // get(): in batches up to now, then it ends
  const batches = [];
  const reader = db.changesReader.get({ since: '0', batchSize: 50, timeout: 1000 });
  reader.on('batch', (batch) => batches.push(batch.length));
  const [last] = await within('the reader ends', once(reader, 'end'));
  assert.deepEqual(batches, [50, 50, 20]);
  assert.ok(last);

  // spool(): all in one request, read line by line
  const spooled = [];
  const spool = nano.use(name).changesReader.spool({ since: 0, includeDocs: true, batchSize: 33 });
  spool.on('batch', (batch) => spooled.push(...batch));
  const [end] = await within('the spool ends', once(spool, 'end'));
  assert.deepEqual(spooled.map((row) => row.doc.n).sort((a, b) => a - b), range(120));
  assert.ok(end && end !== '0');

  // start(): longpoll after longpoll
  const live = nano.use(name).changesReader;
  const seen = [];
  const errors = [];
  live.start({ since: 'now', includeDocs: true, timeout: 2000 })
    .on('change', (change) => seen.push(change)).on('error', (error) => errors.push(error));
  t.after(() => live.stop());
  await sleep(300);
  for (const n of range(3)) {
    await db.insert({ live: n }, `live${n}`);
    await until(`live change ${n}`, () => seen.length === n + 1);
  }
  assert.deepEqual(seen.map((row) => row.doc.live), [0, 1, 2]);
  const chosen = nano.use(name).changesReader.get({ since: '0', selector: { n: { $gt: 117 } }, timeout: 500 });
  const picked = [];
  chosen.on('change', (change) => picked.push(change.id));
  await within('the filtered reader ends', once(chosen, 'end'));
  assert.deepEqual(picked.sort(), ['c118', 'c119']);
  assert.deepEqual(errors, []);
  await refused(db.changes({ since: 'bogus' }), 400, 'bad_request');
});

test('a cookie from auth() is enough for what follows, and only with it', async (t) => {
  const { name } = await fresh(t, 'nano-cookie');
  const jar = Nano(origin);
  await refused(jar.use(name).insert({ v: 1 }, 'x'), 401, 'unauthorized');
  await refused(jar.db.create(uniqueName('nobody')), 401, 'unauthorized');
  await refused(jar.auth(admin.name, 'not the password'), 401, 'unauthorized', 'Name or password is incorrect.');
  const nobody = await jar.session();
  assert.deepEqual([nobody.userCtx.name, nobody.userCtx.roles], [null, []]);
  const login = await jar.auth(admin.name, admin.password);
  assert.deepEqual([login.ok, login.name, login.roles], [true, admin.name, ['_admin']]);
  const { ok } = await jar.use(name).insert({ v: 1 }, 'x');
  assert.equal(ok, true);
  const session = await jar.session();
  assert.deepEqual([session.userCtx.name, session.info.authenticated], [admin.name, 'cookie']);
  const forged = Nano({ url: origin, cookie: 'AuthSession=YWRtaW46NjU0MzIxMDA6AAAA' });
  const thrown = await failure(forged.use(name).get('x'));
  assert.ok([400, 401].includes(thrown.statusCode), thrown.message);
});

test('a server that is not there is an error of the connection', async () => {
  const thrown = await failure(Nano('http://127.0.0.1:9').db.list());
  assert.match(thrown.message, /error happened in your connection/);
  assert.equal(thrown.statusCode, undefined);
});
