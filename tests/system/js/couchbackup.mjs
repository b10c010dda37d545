// @cloudant/couchbackup: a backup into a file, restored into a new database, compared.
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { finished } from 'node:stream/promises';
import test from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import couchbackup from '@cloudant/couchbackup';
import {
  address, allLeaves, call, failure, freshDatabase, noise, range,
} from './harness.mjs';
import { remote } from './pouch.mjs';

const run = promisify(execFile);
const command = (name) =>
  fileURLToPath(new URL(`./node_modules/@cloudant/couchbackup/bin/${name}.bin.js`, import.meta.url));

async function folder(t) {
  const path = await mkdtemp(join(tmpdir(), 'couchbackup-'));
  t.after(() => rm(path, { recursive: true }));
  return path;
}

async function backup(name, file, options = {}) {
  const output = createWriteStream(file);
  const total = await promisify(couchbackup.backup)(address(name), output, {
    parallelism: 2, bufferSize: 300, ...options,
  });
  output.end();
  await finished(output);
  return total.total;
}

async function restore(file, name, options = {}) {
  const total = await promisify(couchbackup.restore)(createReadStream(file), address(name), {
    parallelism: 2, bufferSize: 300, ...options,
  });
  return total.total;
}

async function bulk(name, docs, more = {}) {
  const [status, rows] = await call('POST', `${name}/_bulk_docs`, { docs, ...more });
  assert.equal(status, 201);
  return rows;
}

/** `count` documents: every tenth in conflict, every eighth updated, every ninth deleted. */
async function fill(name, count) {
  const docs = range(count).map((n) => ({
    _id: `doc-${String(n).padStart(5, '0')}`, n, text: `číslo ${n} 🐎`, nested: { list: [n, null, 1.5] },
  }));
  const rows = await bulk(name, docs);
  assert.ok(rows.every((row) => row.ok));
  const changed = rows.map(({ id, rev }, n) => ({ id, rev, n }));
  await bulk(name, changed.filter(({ n }) => n % 10 === 0).flatMap(({ id, rev }) => ['a', 'b'].map((c) => ({
    _id: id, _rev: `2-${c.repeat(32)}`, _revisions: { start: 2, ids: [c.repeat(32), rev.slice(2)] }, side: c,
  }))), { new_edits: false });
  await bulk(name, changed.filter(({ n }) => n % 8 === 0 && n % 10 !== 0)
    .map(({ id, rev }) => ({ _id: id, _rev: rev, updated: true })));
  await bulk(name, changed.filter(({ n }) => n % 9 === 0 && n % 8 !== 0 && n % 10 !== 0)
    .map(({ id, rev }) => ({ _id: id, _rev: rev, _deleted: true })));
  await bulk(name, [{ _id: '_design/app', views: { v: { map: 'function (doc) { emit(doc.n) }' } } }]);
}

async function assertSame(source, target) {
  const [, was] = await call('GET', source);
  const [, is] = await call('GET', target);
  assert.deepEqual([is.doc_count, is.doc_del_count], [was.doc_count, was.doc_del_count]);
  assert.deepEqual(await allLeaves(remote(target)), await allLeaves(remote(source)));
}

test('2,000 documents with conflicts and deletions come back leaf for leaf', async (t) => {
  const [source, target] = [await freshDatabase(t, 'backup'), await freshDatabase(t, 'restored')];
  await fill(source, 2000);
  const file = join(await folder(t), 'full.jsonl');
  const total = await backup(source, file);
  assert.equal(total, 2000 + 200 + 1, 'every leaf, and the conflicts have two');
  assert.equal(await restore(file, target), total);
  await assertSame(source, target);

  // the backup of the restored database is the same backup
  const again = join(await folder(t), 'again.jsonl');
  assert.equal(await backup(target, again), total);
  const docs = async (path) => (await readFile(path, 'utf8')).trim().split('\n')
    .flatMap((line) => (line.startsWith('[') ? JSON.parse(line) : []))
    .map((doc) => `${doc._id} ${doc._rev} ${doc._revisions.ids}`).sort();
  assert.deepEqual(await docs(again), await docs(file));

  const full = await failure(restore(file, target));
  assert.equal(full.name, 'DatabaseNotEmpty');
});

test('attachments are in the backup when they are asked for', async (t) => {
  const [source, target] = [await freshDatabase(t, 'files'), await freshDatabase(t, 'files-restored')];
  await fill(source, 40);
  const files = range(20).map((n) => ({
    _id: `file-${n}`,
    _attachments: {
      'text.txt': { content_type: 'text/plain', data: Buffer.from(`řádek ${n}\n`.repeat(300)).toString('base64') },
      'noise.bin': { content_type: 'application/octet-stream', data: noise(9000, n).toString('base64') },
    },
  }));
  const rows = await bulk(source, files);
  await bulk(source, rows.slice(0, 5).map(({ id, rev }) => ({
    _id: id, _rev: `2-${'f'.repeat(32)}`, _revisions: { start: 2, ids: ['f'.repeat(32), rev.slice(2)] },
    _attachments: { 'other.bin': { content_type: 'image/png', data: noise(500, id).toString('base64') } },
  })), { new_edits: false });
  await bulk(source, rows.slice(5, 8).map(({ id, rev }) => ({ _id: id, _rev: rev, _deleted: true })));

  const file = join(await folder(t), 'files.jsonl');
  const total = await backup(source, file, { attachments: true });
  assert.equal(await restore(file, target, { attachments: true }), total);
  await assertSame(source, target);
  const refusal = await failure(restore(file, await freshDatabase(t, 'files-refused')));
  assert.equal(refusal.name, 'AttachmentsNotEnabledError');
});

test('a shallow backup has the winners only, through the command line', async (t) => {
  const [source, target] = [await freshDatabase(t, 'shallow'), await freshDatabase(t, 'shallow-restored')];
  await fill(source, 300);
  const path = join(await folder(t), 'shallow.jsonl');
  const env = { ...process.env, COUCH_URL: address() };
  await run(process.execPath, [command('couchbackup'), '--db', source, '--mode', 'shallow', '--output', path], { env });
  const restoring = run(process.execPath, [command('couchrestore'), '--db', target], { env });
  createReadStream(path).pipe(restoring.child.stdin);
  await restoring;

  const winners = async (name) => {
    const [, { rows }] = await call('GET', `${name}/_all_docs?include_docs=true&conflicts=true`);
    return rows.map(({ id, value, doc: { _conflicts, ...doc } }) => [id, value.rev, doc]);
  };
  assert.deepEqual(await winners(target), await winners(source));
  const [, info] = await call('GET', target);
  assert.equal(info.doc_del_count, 0);
});

test('a backup that was cut short is resumed from its log', async (t) => {
  const [source, target] = [await freshDatabase(t, 'resume'), await freshDatabase(t, 'resumed')];
  await fill(source, 400);
  const place = await folder(t);
  const [file, log] = [join(place, 'part.jsonl'), join(place, 'part.log')];
  const whole = await backup(source, file, { log, bufferSize: 100 });
  // what a crash leaves: the list of batches, and of the finished ones but the first two
  let done = 0;
  const kept = (await readFile(log, 'utf8')).split('\n')
    .filter((line) => !line.startsWith(':d ') || (done += 1) <= 2);
  await writeFile(log, kept.join('\n'));
  const head = (await readFile(file, 'utf8')).split('\n');
  const batches = head.filter((line) => line.startsWith('['));
  assert.equal(batches.length, Math.ceil(401 / 100));
  await writeFile(file, `${[head[0], ...batches.slice(0, 2)].join('\n')}\n`);

  const output = createWriteStream(file, { flags: 'a' });
  await promisify(couchbackup.backup)(address(source), output, { log, resume: true, parallelism: 1 });
  output.end();
  await finished(output);
  const restored = await restore(file, target);
  assert.ok(restored >= whole, `${restored} of ${whole}`);
  await assertSame(source, target);
});

test('errors: no such database, wrong password, a target that is not there', async (t) => {
  const place = await folder(t);
  const missing = await failure(backup('there-is-no-such-database', join(place, 'x')));
  assert.equal(missing.name, 'DatabaseNotFound');
  const source = await freshDatabase(t, 'errors');
  const url = address(source, { name: 'somebody', password: 'wrong' });
  const denied = await failure(promisify(couchbackup.backup)(url, createWriteStream(join(place, 'y')), {}));
  assert.match(denied.name, /Unauthorized|Forbidden/, denied.message);
  await fill(source, 5);
  await backup(source, join(place, 'z'));
  const target = await failure(restore(join(place, 'z'), 'there-is-no-such-database'));
  assert.equal(target.name, 'DatabaseNotFound');
});
