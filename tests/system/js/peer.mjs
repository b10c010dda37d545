// Another implementation of CouchDB's API: PouchDB behind express-pouchdb, in memory.
// It prints its port, and ends with its standard input.

import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";

const require = createRequire(import.meta.url);
const here = mkdtempSync(join(tmpdir(), "peer-"));
process.chdir(here);

const PouchDB = require("pouchdb").plugin(require("pouchdb-adapter-memory"));
PouchDB.preferredAdapters.unshift("memory"); // as a default it would be taken for URLs, too
const app = require("express")();
const logPath = join(here, "peer.log");
app.use(require("express-pouchdb")(PouchDB, { mode: "fullCouchDB", inMemoryConfig: true, logPath }));

const server = app.listen(0, "127.0.0.1", () => console.log(server.address().port));
process.stdin.on("end", () => {
  rmSync(here, { recursive: true, force: true });
  process.exit(0);
}).resume();
