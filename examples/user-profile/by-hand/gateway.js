// GET /users/:id for the world: a small cache in this process, then Redis, then the data provider.
'use strict';

const http = require('node:http');
const { serve, service } = require('../service');
const { connect, CHANNEL } = require('./redis');

const NEAR_ENTRIES = 10_000;
const NEAR_TTL_MS = 5_000; // a safety net; Pub/Sub is what keeps it fresh

// An LRU: a Map keeps the order of insertion. Who asks while a load of the same user is under way
// waits for that one. An invalidation forgets such loads: nobody joins them any more, and what they
// bring is not kept, or it would be the old value that comes back.
class Near {
  constructor() {
    this.entries = new Map();
    this.loads = new Map();
    this.usable = false; // only while we hear what changes
  }
  async read(id, load) {
    const entry = this.usable ? this.entries.get(id) : undefined;
    if (entry !== undefined && entry.until > Date.now()) {
      this.entries.delete(id);
      this.entries.set(id, entry);
      return entry.answer;
    }
    if (!this.usable) return load(id);
    let loading = this.loads.get(id);
    if (loading === undefined) {
      loading = load(id);
      this.loads.set(id, loading);
      const done = (answer) => {
        if (this.loads.get(id) !== loading) return;
        this.loads.delete(id);
        if (answer?.status === 200) this.put(id, answer);
      };
      loading.then(done, () => done());
    }
    return loading;
  }
  put(id, answer) {
    this.entries.delete(id);
    this.entries.set(id, { answer, until: Date.now() + NEAR_TTL_MS });
    if (this.entries.size > NEAR_ENTRIES) this.entries.delete(this.entries.keys().next().value);
  }
  invalidate(id) {
    this.entries.delete(id);
    this.loads.delete(id);
  }
  clear() {
    this.entries.clear();
    this.loads.clear();
  }
}

const near = new Near();
const redis = connect();
const subscriber = connect({ enableOfflineQueue: true, commandTimeout: undefined });

// Pub/Sub has no history: whatever was said while nobody listened is lost, so all of it goes.
subscriber.on('ready', () => {
  subscriber.subscribe(CHANNEL, (error) => {
    if (error) return;
    near.clear();
    near.usable = true;
  });
});
subscriber.on('close', () => {
  near.usable = false;
  near.clear();
});
subscriber.on('message', (_channel, message) => {
  try {
    const event = JSON.parse(message);
    if (event.type === 'user') near.invalidate(String(event.id));
  } catch {
    near.clear(); // somebody else's nonsense: better safe than stale
  }
});

const agent = new http.Agent({ keepAlive: true, maxSockets: 64 });

function askProvider(id) {
  const path = `/users/${encodeURIComponent(id)}`;
  return new Promise((resolve, reject) => {
    const request = http.get(
      { host: '127.0.0.1', port: process.env.PROVIDER_PORT, path, agent, timeout: 2_000 },
      (response) => {
        let body = '';
        response.setEncoding('utf8');
        response.on('data', (piece) => (body += piece));
        response.on('end', () => resolve({ status: response.statusCode, body }));
      },
    );
    request.on('timeout', () => request.destroy(new Error('the data provider is silent')));
    request.on('error', reject);
  });
}

async function load(id) {
  const body = await redis.get(`user:${id}`).catch(() => null);
  return body === null ? askProvider(id) : { status: 200, body };
}

const app = service();
app.get('/users/:id', async (request, response) => {
  const answer = await near.read(request.params.id, load);
  response.status(answer.status).type('json').send(answer.body);
});
app.use(app.fails);
serve(app, async () => {
  redis.disconnect();
  subscriber.disconnect();
});
