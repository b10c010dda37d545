// PouchDB's HTTP adapter straight on the node: documents, attachments, local documents, feeds.
import assert from 'node:assert/strict';
import test from 'node:test';
import {
  address, call, failure, freshDatabase, isCluster, lines, noise, range, raw, sleep, uniqueName,
  until, within,
} from './harness.mjs';
import { PouchDB, remote } from './pouch.mjs';

async function fresh(t, prefix) {
  const name = await freshDatabase(t, prefix);
  return { name, db: remote(name) };
}

test('a database is made by its first use and destroyed', async (t) => {
  const name = uniqueName('by-use');
  t.after(() => call('DELETE', name));
  const db = new PouchDB(address(name));
  const info = await db.info();
  assert.equal(info.db_name, name);
  assert.equal(info.doc_count, 0);
  await db.put({ _id: 'x' });
  assert.equal((await db.info()).doc_count, 1);
  assert.equal((await db.destroy()).ok, true);
  assert.equal((await call('GET', name))[0], 404);
  assert.equal((await failure(remote(name).put({ _id: 'y' }))).status, 404);
});

test('documents: revisions, refusals and what they say', async (t) => {
  const { db } = await fresh(t, 'documents');
  const one = await db.put({ _id: 'doc', list: [1, 2.5, -0, 1e21, null, true], text: '\u0000 "\\ 𝄞' });
  assert.equal(one.ok, true);
  assert.match(one.rev, /^1-[0-9a-f]{32}$/);
  const read = await db.get('doc');
  assert.deepEqual(read.list.map(Number), [1, 2.5, 0, 1e21, 0, 1]);
  assert.equal(read.text, '\u0000 "\\ 𝄞');

  const clash = await failure(db.put({ _id: 'doc', x: 1 }));
  assert.deepEqual(
    [clash.status, clash.name, clash.reason], [409, 'conflict', 'Document update conflict.'],
  );
  const two = await db.put({ _id: 'doc', _rev: one.rev, v: 2 });
  assert.equal((await failure(db.put({ _id: 'doc', _rev: one.rev, v: 3 }))).status, 409);
  assert.equal((await db.get('doc', { rev: one.rev })).text, read.text);

  const told = await db.get('doc', { revs: true, revs_info: true, conflicts: true });
  assert.deepEqual(told._revisions, { start: 2, ids: [two.rev.slice(2), one.rev.slice(2)] });
  assert.deepEqual(told._revs_info.map(({ rev }) => rev), [two.rev, one.rev]);
  assert.equal(told._conflicts, undefined);

  const three = await db.remove('doc', two.rev);
  const gone = await failure(db.get('doc'));
  assert.deepEqual([gone.status, gone.error, gone.reason], [404, 'not_found', 'deleted']);
  const never = await failure(db.get('never'));
  assert.deepEqual([never.status, never.reason], [404, 'missing']);
  assert.deepEqual(
    await db.get('doc', { rev: three.rev }), { _id: 'doc', _rev: three.rev, _deleted: true },
  );
  const leaves = await db.get('doc', { open_revs: 'all' });
  assert.deepEqual(leaves.map(({ ok }) => ok._rev), [three.rev]);
  const some = await db.get('doc', { open_revs: [one.rev, '9-abc'] });
  assert.equal(some.find((row) => row.ok).ok._rev, one.rev);
  assert.equal(some.find((row) => row.missing).missing, '9-abc');

  const posted = await db.post({ made: 'up' });
  assert.equal((await db.get(posted.id)).made, 'up');
  for (const _id of ['a/b/c', 'with space', 'q?a=b&c', 'plus+', '%2F', 'é', '#hash', '~!*()\'']) {
    const { rev } = await db.put({ _id, name: _id });
    assert.deepEqual(await db.get(_id), { _id, _rev: rev, name: _id });
  }
  // PouchDB refuses these itself; the node must too
  assert.equal((await call('PUT', `${db.name.split('/').pop()}/_odd`, {}))[0], 400);
});

test('500 documents in bulk: order, ranges, keys, errors by row, _bulk_get, _revs_diff', async (t) => {
  const { db } = await fresh(t, 'bulk');
  const docs = range(500).map((n) => ({ _id: `n${String(n).padStart(3, '0')}`, n }));
  const rows = await db.bulkDocs(docs);
  assert.deepEqual(rows.map(({ ok, id }) => [ok, id]), docs.map(({ _id }) => [true, _id]));
  const ids = async (options) => (await db.allDocs(options)).rows.map((row) => row.id);
  assert.deepEqual(await ids({}), docs.map(({ _id }) => _id));
  assert.deepEqual(await ids({ startkey: 'n010', endkey: 'n012' }), ['n010', 'n011', 'n012']);
  assert.deepEqual(await ids({ startkey: 'n010', endkey: 'n012', inclusive_end: false }), ['n010', 'n011']);
  assert.deepEqual(
    await ids({ startkey: 'n012', endkey: 'n010', descending: true }), ['n012', 'n011', 'n010'],
  );
  assert.deepEqual(await ids({ skip: 498 }), ['n498', 'n499']);
  assert.deepEqual(await ids({ limit: 2, skip: 1, descending: true }), ['n498', 'n497']);
  assert.deepEqual(await ids({ key: 'n007' }), ['n007']);
  const full = await db.allDocs({ include_docs: true, startkey: 'n499' });
  assert.deepEqual([full.total_rows, full.offset, full.rows.length], [500, 499, 1]);
  assert.equal(full.rows[0].doc.n, 499);

  await db.remove('n005', rows[5].rev);
  const keyed = await db.allDocs({ keys: ['n499', 'nope', 'n005', 'n000', 'n499'] });
  assert.deepEqual(
    keyed.rows.map((row) => [row.key, row.error ?? row.value.deleted ?? 'live']),
    [['n499', 'live'], ['nope', 'not_found'], ['n005', true], ['n000', 'live'], ['n499', 'live']],
  );

  const mixed = await db.bulkDocs([
    { _id: 'n000', _rev: rows[0].rev, n: 'new' },
    { _id: 'n001', _rev: rows[0].rev, n: 'not its revision' },
    { _id: 'n002', n: 'no revision' },
    { _id: 'fresh', n: 'fresh' },
    { _id: 'n003', _rev: rows[3].rev, _deleted: true },
  ]);
  assert.deepEqual(mixed.map((row) => row.ok ?? row.status), [true, 409, 409, true, true]);
  assert.equal(mixed[1].id, 'n001');
  assert.equal((await db.info()).doc_count, 499);

  const got = await db.bulkGet({
    revs: true,
    docs: [{ id: 'n000' }, { id: 'n000', rev: rows[0].rev }, { id: 'nope' }, { id: 'n003' }],
  });
  const told = got.results.map(({ id, docs: [first] }) => [id, first.ok?.n ?? first.ok?._deleted ?? first.error.error]);
  assert.deepEqual(told, [['n000', 'new'], ['n000', 0], ['nope', 'not_found'], ['n003', true]]);
  assert.equal(got.results[0].docs[0].ok._revisions.start, 2);

  const missing = await db.revsDiff({
    n000: [rows[0].rev, '2-deadbeef', '1-cafe'], nope: ['1-a'], n001: [rows[1].rev],
  });
  assert.deepEqual(Object.keys(missing).sort(), ['n000', 'nope']);
  assert.deepEqual(missing.n000.missing.toSorted(), ['1-cafe', '2-deadbeef']);
  assert.deepEqual(missing.nope.missing, ['1-a']);
});

test('attachments: bytes, types, stubs, ranges of sizes, removal', async (t) => {
  const { name, db } = await fresh(t, 'attachments');
  const text = Buffer.from('<p>dvojitá žába</p>\n'.repeat(3000));
  const binary = noise(2 * 1024 * 1024, 'remote');
  let { rev } = await db.putAttachment('a', 'page.html', text, 'text/html');
  ({ rev } = await db.putAttachment('a', 'dir/big.bin', rev, binary, 'application/octet-stream'));
  ({ rev } = await db.putAttachment('a', 'nil', rev, Buffer.alloc(0), 'application/x-empty'));
  const stale = db.putAttachment('a', 'no', '1-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa', text, 'text/plain');
  assert.equal((await failure(stale)).status, 409);

  assert.ok(text.equals(await db.getAttachment('a', 'page.html')));
  assert.ok(binary.equals(await db.getAttachment('a', 'dir/big.bin')));
  assert.equal((await db.getAttachment('a', 'nil')).length, 0);
  const stubs = (await db.get('a'))._attachments;
  assert.deepEqual(
    Object.entries(stubs).map(([key, a]) => [key, a.content_type, a.length, a.stub, a.revpos]).sort(),
    [
      ['dir/big.bin', 'application/octet-stream', binary.length, true, 2],
      ['nil', 'application/x-empty', 0, true, 3],
      ['page.html', 'text/html', text.length, true, 1],
    ],
  );
  const inline = await db.get('a', { attachments: true });
  assert.equal(inline._attachments['page.html'].data, text.toString('base64'));
  assert.ok(Buffer.from(inline._attachments['dir/big.bin'].data, 'base64').equals(binary));
  const buffers = await db.get('a', { attachments: true, binary: true });
  assert.ok(binary.equals(buffers._attachments['dir/big.bin'].data));

  const response = await raw(`${name}/a/dir/big.bin`, { headers: { range: 'bytes=1048570-1048585' } });
  assert.equal(response.status, 206);
  assert.ok(binary.subarray(1048570, 1048586).equals(Buffer.from(await response.arrayBuffer())));
  assert.equal(response.headers.get('content-range'), `bytes 1048570-1048585/${binary.length}`);

  // a body update with stubs keeps the bytes; one without drops them
  const doc = await db.get('a');
  delete doc._attachments.nil;
  ({ rev } = await db.put({ ...doc, more: true }));
  assert.ok(binary.equals(await db.getAttachment('a', 'dir/big.bin')));
  assert.equal((await failure(db.getAttachment('a', 'nil'))).status, 404);
  const [, lost] = await call('GET', `${name}/a/nil`);
  assert.deepEqual(lost, { error: 'not_found', reason: 'Document is missing attachment' });
  assert.equal((await db.getAttachment('a', 'nil', { rev: doc._rev })).length, 0, 'the old revision has it');
  ({ rev } = await db.removeAttachment('a', 'page.html', rev));
  assert.deepEqual(Object.keys((await db.get('a'))._attachments), ['dir/big.bin']);
  const unknown = await failure(
    db.put({ _id: 'b', _attachments: { x: { stub: true, digest: 'md5-nothing', revpos: 1, length: 1, content_type: 'a/b' } } }),
  );
  assert.deepEqual([unknown.status, unknown.name], [412, 'missing_stub']);
  const broken = await failure(
    db.put({ _id: 'c', _attachments: { x: { data: 'äöü!', content_type: 'text/plain' } } }),
  );
  assert.equal(broken.status, 400);
  assert.equal((await db.info()).doc_count, 1);
});

test('design documents are documents; _local ones are kept, and in no list and no feed', async (t) => {
  const { db } = await fresh(t, 'special');
  const ddoc = { _id: '_design/app', views: { all: { map: 'function (doc) { emit(doc._id) }' } } };
  const { rev } = await db.put(ddoc);
  assert.deepEqual(await db.get('_design/app'), { ...ddoc, _rev: rev });
  await db.put({ _id: 'plain' });
  const later = await db.put({ ...ddoc, _rev: rev, language: 'javascript' });
  assert.match(later.rev, /^2-/);
  const all = await db.allDocs({ startkey: '_design/', endkey: '_design0' });
  assert.deepEqual(all.rows.map((row) => row.id), ['_design/app']);
  const attached = await db.putAttachment('_design/app', 'i.txt', later.rev, Buffer.from('hi'), 'text/plain');
  assert.equal((await db.getAttachment('_design/app', 'i.txt')).toString(), 'hi');

  const before = (await db.info()).update_seq;
  const first = await db.put({ _id: '_local/mark', at: 1 });
  assert.equal(first.rev, '0-1');
  const second = await db.put({ _id: '_local/mark', _rev: '0-1', at: 2 });
  assert.equal(second.rev, '0-2');
  assert.deepEqual(await db.get('_local/mark'), { _id: '_local/mark', _rev: '0-2', at: 2 });
  assert.equal((await failure(db.get('_local/other'))).status, 404);
  assert.deepEqual((await db.allDocs()).rows.map((row) => row.id), ['_design/app', 'plain']);
  assert.equal((await db.changes({ since: before })).results.length, 0);
  const feed = await db.changes({ since: 0 });
  assert.deepEqual(feed.results.map((row) => row.id).sort(), ['_design/app', 'plain']);
  await db.remove(await db.get('_local/mark'));
  assert.equal((await failure(db.get('_local/mark'))).status, 404);
  await db.remove('_design/app', attached.rev);
  assert.equal((await db.info()).doc_count, 1);
});

test('a live feed shows each change once, in order, and ends when it is told to', async (t) => {
  const { db } = await fresh(t, 'live');
  await db.put({ _id: 'before' });
  const seen = [];
  const feed = db.changes({ live: true, since: 'now', include_docs: true, timeout: 5000 });
  feed.on('change', (change) => seen.push(change));
  const ended = new Promise((resolve, reject) => feed.on('complete', resolve).on('error', reject));
  t.after(() => feed.cancel());
  await sleep(300);
  const revs = [];
  for (const n of range(10)) {
    revs.push((await db.put({ _id: `live${n}`, n })).rev);
    await until(`change ${n}`, () => seen.length === n + 1);
  }
  const gone = await db.remove('live3', revs[3]);
  await until('the deletion', () => seen.length === 11);
  assert.deepEqual(seen.slice(0, 10).map((row) => [row.id, row.changes[0].rev, row.doc.n]),
    range(10).map((n) => [`live${n}`, revs[n], n]));
  assert.deepEqual([seen[10].id, seen[10].deleted, seen[10].changes[0].rev], ['live3', true, gone.rev]);
  await db.bulkDocs(range(200).map((n) => ({ _id: `many${n}` })));
  await until('200 more', () => seen.length === 211);
  feed.cancel();
  await within('the feed ends', ended);
  await db.put({ _id: 'after' });
  await sleep(200);
  assert.equal(seen.length, 211);
  assert.equal(new Set(seen.map((row) => row.seq)).size, 211);
});

/**
 * The changes of a feed that is read in pages. In a cluster each page may come from another node,
 * which has an order of its own: a change may come twice, but none is missed.
 */
function told(rows) {
  if (!isCluster) return rows;
  return Object.values(Object.fromEntries(rows.map((row) => [row.id, row])))
    .sort((a, b) => (a.id < b.id ? -1 : 1));
}

test('a feed read in pages from any of its sequences is the feed', async (t) => {
  const { db } = await fresh(t, 'pages');
  await db.bulkDocs(range(60).map((n) => ({ _id: `p${n}` })));
  const { rows } = await db.allDocs();
  await db.bulkDocs(rows.slice(0, 20).map(({ id, value }) => ({ _id: id, _rev: value.rev, again: true })));
  const whole = told((await db.changes({ since: 0, return_docs: true })).results);
  assert.equal(whole.length, 60);
  assert.equal(whole.filter((row) => row.changes[0].rev[0] === '2').length, 20);
  if (!isCluster) assert.ok(whole.slice(-20).every((row) => row.changes[0].rev[0] === '2'));
  let since = 0;
  const paged = [];
  for (;;) {
    const page = await db.changes({ since, limit: 7 });
    if (page.results.length === 0) break;
    paged.push(...page.results);
    since = page.last_seq;
  }
  assert.deepEqual(told(paged).map((row) => row.id), whole.map((row) => row.id));
  const rest = (await db.changes({ since: whole[41].seq })).results.map((row) => row.id);
  if (!isCluster) assert.deepEqual(rest, whole.slice(42).map((row) => row.id));
  const last = await db.changes({ descending: true, limit: 1 });
  if (!isCluster) assert.equal(last.results[0].id, whole[59].id);

  const some = await db.changes({ doc_ids: ['p1', 'p50', 'none'] });
  assert.deepEqual(some.results.map((row) => row.id).sort(), ['p1', 'p50']);
  const chosen = await db.changes({ selector: { again: true }, include_docs: true });
  assert.equal(chosen.results.length, 20);
  assert.ok(chosen.results.every((row) => row.doc.again));
});

/** Rows and other lines of a continuous feed, read until `enough(rows)`. */
async function readContinuous(response, enough) {
  const found = { rows: [], blank: 0 };
  for await (const line of lines(response)) {
    if (line.trim() === '') found.blank += 1;
    else found.rows.push(JSON.parse(line));
    if (enough(found)) break;
  }
  return found;
}

test('feed=continuous: a line a change, bare newlines between, last_seq at its time-out', async (t) => {
  const { name, db } = await fresh(t, 'continuous');
  await db.bulkDocs(range(3).map((n) => ({ _id: `c${n}` })));
  const abort = new AbortController();
  t.after(() => abort.abort());
  const response = await raw(`${name}/_changes?feed=continuous&heartbeat=200&include_docs=true`, {
    signal: abort.signal,
  });
  assert.equal(response.status, 200);
  const reading = readContinuous(response, ({ rows, blank }) => rows.length === 5 && blank >= 2);
  await sleep(500);
  await db.put({ _id: 'c3', live: true });
  await db.remove(await db.get('c0'));
  const { rows } = await within('five changes and two heartbeats', reading, 10_000);
  assert.deepEqual(rows.slice(0, 3).map((row) => row.id).sort(), ['c0', 'c1', 'c2']);
  assert.deepEqual([rows[3].id, rows[3].doc.live], ['c3', true]);
  assert.deepEqual([rows[4].id, rows[4].deleted, rows[4].doc._deleted], ['c0', true, true]);

  const timed = await raw(`${name}/_changes?feed=continuous&timeout=300&since=${rows[3].seq}`);
  const rest = await within('the feed ends by itself', readContinuous(timed, () => false), 10_000);
  assert.deepEqual(rest.rows.map((row) => row.id ?? Object.keys(row)[0]), ['c0', 'last_seq']);
  const limited = await raw(`${name}/_changes?feed=continuous&limit=2`);
  const two = await within('the limited feed ends', readContinuous(limited, () => false), 10_000);
  assert.equal(two.rows.filter((row) => row.id).length, 2);
});

test('feed=longpoll waits for a change; feed=eventsource streams them', async (t) => {
  const { name, db } = await fresh(t, 'longpoll');
  const now = (await call('GET', `${name}/_changes?since=now`))[1].last_seq;
  const quiet = await call('GET', `${name}/_changes?feed=longpoll&timeout=200&since=${now}`);
  assert.deepEqual(quiet[1].results, []);
  assert.ok(quiet[1].last_seq);
  let answered = false;
  const poll = call('GET', `${name}/_changes?feed=longpoll&timeout=20000&since=${now}`)
    .then((answer) => { answered = true; return answer; });
  await sleep(400);
  assert.equal(answered, false, 'nothing has changed yet');
  const { rev } = await db.put({ _id: 'wake' });
  const [status, body] = await within('the poll answers', poll, 5000);
  assert.equal(status, 200);
  assert.deepEqual(body.results.map((row) => [row.id, row.changes]), [['wake', [{ rev }]]]);
  const at = encodeURIComponent(body.last_seq);
  const next = await call('GET', `${name}/_changes?feed=longpoll&timeout=200&since=${at}`);
  assert.deepEqual(next[1].results, []);

  const abort = new AbortController();
  t.after(() => abort.abort());
  const stream = await raw(`${name}/_changes?feed=eventsource&since=0`, {
    signal: abort.signal, headers: { accept: 'text/event-stream' },
  });
  assert.match(stream.headers.get('content-type'), /^text\/event-stream/);
  const read = (async () => {
    for await (const line of lines(stream)) if (line.startsWith('data: {')) return JSON.parse(line.slice(6));
    return null;
  })();
  assert.equal((await within('an event', read, 5000)).id, 'wake');
});

test('compaction and a limit of revisions keep every leaf', async (t) => {
  const { name, db } = await fresh(t, 'compaction');
  let { rev } = await db.put({ _id: 'x', v: 0 });
  const first = rev;
  for (const v of range(10)) ({ rev } = await db.put({ _id: 'x', _rev: rev, v }));
  await db.put({ _id: 'x', _rev: '2-dddddddddddddddddddddddddddddddd', v: 'other' }, { new_edits: false });
  await db.compact();
  assert.equal((await db.get('x')).v, 9);
  const conflicts = (await db.get('x', { conflicts: true }))._conflicts;
  assert.deepEqual(conflicts, ['2-dddddddddddddddddddddddddddddddd']);
  assert.equal((await db.get('x', { rev: conflicts[0] })).v, 'other');
  await until('the old body is gone', () => db.get('x', { rev: first }).then(() => false, (e) => e.status === 404));
  assert.equal((await db.get('x', { revs: true }))._revisions.ids.length, 11);

  assert.equal((await call('PUT', `${name}/_revs_limit`, 3))[0], 200);
  assert.deepEqual(await call('GET', `${name}/_revs_limit`), [200, 3]);
  ({ rev } = await db.put({ _id: 'x', _rev: rev, v: 'last' }));
  assert.equal((await db.get('x', { revs: true }))._revisions.ids.length, 3);
  assert.match(rev, /^12-/);
});

test('views: rows, keys, groups, and a function that is no view', async (t) => {
  const { db } = await fresh(t, 'views');
  const emit = 'function (doc) { if (doc.team) emit([doc.team, doc.age], doc.age); }';
  await db.put({ _id: '_design/d', views: { team: { map: emit, reduce: '_sum' } } });
  await db.bulkDocs(range(40).map((n) => ({ _id: `p${n}`, team: n % 2 ? 'red' : 'blue', age: n })));
  const all = await db.query('d/team', { reduce: false, include_docs: true, limit: 3 });
  assert.equal(all.total_rows, 40);
  assert.deepEqual(all.rows.map(({ id, doc }) => [id, doc.age]), [['p0', 0], ['p2', 2], ['p4', 4]]);
  const groups = await db.query('d/team', { group_level: 1 });
  assert.deepEqual(groups.rows, [{ key: ['blue'], value: 380 }, { key: ['red'], value: 400 }]);
  const keys = range(40).map((n) => [n % 2 ? 'red' : 'blue', n]).reverse();
  const some = await db.query('d/team', { keys, reduce: false });
  assert.deepEqual(some.rows.map(({ key }) => key), keys);
  const gone = await failure(db.query('d/none'));
  assert.deepEqual([gone.status, gone.reason], [404, 'missing_named_view']);
  await db.put({ _id: 'p40', team: 'red', age: 1000 });
  assert.equal((await db.query('d/team')).rows[0].value, 1780);
  assert.equal((await db.viewCleanup()).ok, true);
});

test('filter functions choose what is followed, and validation what is written', async (t) => {
  const { db } = await fresh(t, 'functions');
  await db.put({
    _id: '_design/d',
    filters: { odd: 'function (doc, req) { return doc.n % 2 == req.query.rest; }' },
    validate_doc_update: "function (doc) { if (doc.n < 0) throw({ forbidden: 'below 0' }); }",
  });
  await db.bulkDocs(range(20).map((n) => ({ _id: `d${n}`, n })));
  const odd = await db.changes({ filter: 'd/odd', query_params: { rest: 1 }, return_docs: true });
  assert.equal(odd.results.length, 10);
  const refused = await failure(db.put({ _id: 'x', n: -1 }));
  assert.deepEqual([refused.status, refused.name, refused.reason], [403, 'forbidden', 'below 0']);
});
