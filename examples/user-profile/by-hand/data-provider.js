// Owns the database's reads: cache-aside on Redis, with a lock against stampedes.
'use strict';

const crypto = require('node:crypto');
const Database = require('better-sqlite3');
const { serve, service } = require('../service');
const { connect } = require('./redis');

const TTL_S = 60;
const LOCK_MS = 2_000;
const WAIT_MS = 20;
const WAITS = 25;

const db = new Database(process.env.DATABASE, { readonly: true, timeout: 2_000 });
const select = db.prepare('SELECT id, name, email, version FROM user WHERE id = ?');
const redis = connect();
let queries = 0; // what the comparison counts: at the statement, not at the cache

// Only the holder may release: a lock that has expired may be somebody else's by now.
redis.defineCommand('release', {
  numberOfKeys: 1,
  lua: `if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
        return 0`,
});

function load(id) {
  queries += 1;
  const row = select.get(id);
  return row === undefined ? null : JSON.stringify(row);
}

// Up to a tenth less, so that what was loaded together does not expire together.
function ttl() {
  return Math.ceil(TTL_S * (1 - 0.1 * Math.random()));
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function loadAndFill(id, key, lock, token) {
  try {
    const body = load(id);
    if (body !== null) await redis.setex(key, ttl(), body).catch(() => {});
    return body;
  } finally {
    await redis.release(lock, token).catch(() => {}); // it expires by itself
  }
}

async function read(id) {
  const key = `user:${id}`;
  const lock = `lock:${key}`;
  const token = crypto.randomUUID();
  for (let wait = 0; wait < WAITS; wait += 1) {
    const cached = await redis.get(key);
    if (cached !== null) return cached;
    const mine = await redis.set(lock, token, 'PX', LOCK_MS, 'NX');
    if (mine) return loadAndFill(id, key, lock, token);
    await sleep(WAIT_MS); // somebody else is loading it
  }
  return load(id); // he takes too long
}

const app = service();
app.get('/users/:id', async (request, response) => {
  const id = request.params.id;
  // Without Redis there is the database: slower, but right.
  const body = await read(id).catch(() => load(id));
  if (body === null) return response.status(404).json({ error: 'no such user' });
  response.type('json').send(body);
});
app.get('/stats', (_request, response) => response.json({ queries }));
app.use(app.fails);
serve(app, async () => {
  redis.disconnect();
  db.close();
});
