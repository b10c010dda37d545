// What the client scripts share: the node's address, raw requests, waiting, and the comparison of
// everything that databases hold.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';

assert.ok(process.env.COUCH_URL, 'COUCH_URL=http://user:password@host:port is needed');
const given = new URL(process.env.COUCH_URL);

/** The node without credentials, and the administrator's name and password. */
export const origin = given.origin;
export const admin = {
  name: decodeURIComponent(given.username),
  password: decodeURIComponent(given.password),
};

/** Whether requests may come to different nodes. */
export const isCluster = process.env.COUCH_IS_CLUSTER === '1';

/** `http://user:password@host:port/path`; without credentials when `who` is null. */
export function address(path = '', who = admin) {
  const url = new URL(`/${path}`, origin);
  if (who !== null) {
    url.username = encodeURIComponent(who.name);
    url.password = encodeURIComponent(who.password);
  }
  return url.href;
}

export function basic(who) {
  return `Basic ${Buffer.from(`${who.name}:${who.password}`).toString('base64')}`;
}

/** A fetch with credentials, for what the client under test has no method for. */
export function raw(path, { who = admin, headers = {}, ...options } = {}) {
  const sent = { accept: 'application/json', ...headers };
  if (who !== null) sent.authorization = basic(who);
  return fetch(`${origin}/${path}`, { ...options, headers: sent });
}

/** `[status, decoded body]` of a JSON request. */
export async function call(method, path, body, options = {}) {
  const response = await raw(path, {
    method,
    body: body === undefined ? undefined : JSON.stringify(body),
    ...options,
    headers: { 'content-type': 'application/json', ...options.headers },
  });
  const text = await response.text();
  return [response.status, text === '' ? null : JSON.parse(text)];
}

/** A new empty database on the node, which the test drops at its end; its name. */
export async function freshDatabase(t, prefix) {
  const name = uniqueName(prefix);
  const [status, body] = await call('PUT', name);
  assert.equal(status, 201, JSON.stringify(body));
  t.after(() => call('DELETE', name));
  return name;
}

let names = 0;

/** A name that no other test uses, in this run or another. */
export function uniqueName(prefix) {
  names += 1;
  return `${prefix}-${process.pid}-${Date.now().toString(36)}-${names}`;
}

/** Wait until `condition()` gives something true, and return it. */
export async function until(what, condition, waitMsMax = 30_000) {
  const deadline = Date.now() + waitMsMax;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`not within ${waitMsMax} ms: ${what}`);
    await sleep(25);
  }
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The promise's value, or an error when it does not come in time. */
export async function within(what, promise, waitMsMax = 30_000) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${waitMsMax} ms: ${what}`)), waitMsMax);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** The promise's error; a failure when it has none. */
export async function failure(promise) {
  let value;
  try {
    value = await promise;
  } catch (error) {
    return error;
  }
  throw new Error(`expected an error, got ${JSON.stringify(value)}`);
}

/** Bytes that neither repeat nor compress, the same for the same seed. */
export function noise(size, seed) {
  const blocks = [];
  for (let made = 0; made < size; made += 32) {
    blocks.push(createHash('sha256').update(`${seed} ${made}`).digest());
  }
  return Buffer.concat(blocks).subarray(0, size);
}

export const range = (count) => Array.from({ length: count }, (_, index) => index);

/**
 * Everything that a PouchDB database (local or remote) holds: for each id all leaf revisions, deleted
 * ones too, each with its ancestry, its body and the bytes of its attachments.
 */
export async function allLeaves(db) {
  const feed = await db.changes({ since: 0, style: 'all_docs' });
  const found = {};
  for (const id of feed.results.map((row) => row.id).sort()) {
    const leaves = await db.get(id, { open_revs: 'all', revs: true });
    const told = [];
    for (const { ok } of leaves) told.push(await leafAsText(db, id, ok));
    found[id] = told.sort();
  }
  return found;
}

async function leafAsText(db, id, leaf) {
  const { _rev, _revisions, _deleted = false, _attachments = {}, ...body } = leaf;
  const files = {};
  for (const name of Object.keys(_attachments).sort()) {
    // the bytes, not the digest: CouchDB gives that of the compressed form for text
    const data = Buffer.from(await db.getAttachment(id, name, { rev: _rev }));
    files[name] = [
      _attachments[name].content_type, data.length,
      createHash('sha256').update(data).digest('hex'),
    ];
  }
  return JSON.stringify([_rev, _deleted, _revisions, sorted(body), files]);
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== 'object') return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

/** Lines of a streaming response, as they come: an async iterator with `next()` and `return()`. */
export async function* lines(response) {
  const decoder = new TextDecoder();
  let rest = '';
  for await (const chunk of response.body) {
    rest += decoder.decode(chunk, { stream: true });
    const parts = rest.split('\n');
    rest = parts.pop();
    yield* parts;
  }
  if (rest !== '') yield rest;
}
