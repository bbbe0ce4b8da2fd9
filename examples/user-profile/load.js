// The load: readers with a few hot keys, writers that change rows meanwhile, and a judge.
//
// A row carries a version, and each row has one writer, so versions only grow. When a write has
// been acknowledged, every read that begins later ought to see its version or a newer one. A read
// that does not is `stale`; if the version that it lacks was acknowledged more than `bound_ms`
// before the read began, it is `late`, too. Requests are due at fixed times, and their time counts
// from there: a service that stalls is charged for all who would have come meanwhile.
//
// In: JSON in LOAD. Out: one line of JSON.
'use strict';

const http = require('node:http');

const load = JSON.parse(process.env.LOAD);
const agent = new http.Agent({ keepAlive: true, maxSockets: 256 });
// Until then the services warm up, and only mistakes are counted.
const BEGIN = performance.now() + load.warm_up_seconds * 1000;
const END = BEGIN + load.seconds * 1000;

const state = Array.from({ length: load.users }, (_, i) => ({
  id: `user-${i + 1}`,
  version: 1,
  // Acknowledged writes, newest last: { version, at }. The first row was there before.
  acked: [{ version: 1, at: -Infinity }],
}));

const result = {
  reads: 0, writes: 0, stale: 0, late: 0, worst_late_ms: 0, read_errors: 0, write_errors: 0,
  wrong: 0, first_error: null,
};
const latencies = [];

// Zipf: user r is asked for with weight 1/r.
const cumulative = [];
state.reduce((sum, _, i) => (cumulative[i] = sum + 1 / (i + 1)), 0);
function pick() {
  const dice = Math.random() * cumulative[cumulative.length - 1];
  let low = 0;
  let high = cumulative.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (cumulative[middle] < dice) low = middle + 1;
    else high = middle;
  }
  return low;
}

function ask(port, method, path, body) {
  return new Promise((resolve, reject) => {
    const headers = body ? { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) } : {};
    const request = http.request(
      { host: '127.0.0.1', port, method, path, agent, headers, timeout: 3_000 },
      (response) => {
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (piece) => (text += piece));
        response.on('end', () => {
          if (response.statusCode === 200) resolve(text);
          else reject(new Error(`${method} ${path}: ${response.statusCode} ${text}`));
        });
        response.on('error', reject);
      },
    );
    request.on('timeout', () => request.destroy(new Error(`${method} ${path}: no answer`)));
    request.on('error', reject);
    request.end(body);
  });
}

const sleepUntil = (at) => new Promise((resolve) => setTimeout(resolve, Math.max(0, at - performance.now())));

function failed(kind, error) {
  result[kind] += 1;
  result.first_error ??= error.message;
}

// What a read that begins now must see, and what it must have seen for as long as the bound.
function owed(user) {
  const limit = performance.now() - load.bound_ms;
  while (user.acked.length > 1 && user.acked[1].at <= limit) user.acked.shift();
  return { now: user.acked.at(-1).version, bound: user.acked[0].version, history: [...user.acked] };
}

async function readOnce(due) {
  const user = state[pick()];
  const expected = owed(user);
  const began = performance.now();
  const text = await ask(load.gateway, 'GET', `/users/${user.id}`);
  if (due >= BEGIN) {
    latencies.push(performance.now() - due);
    result.reads += 1;
  }
  const row = JSON.parse(text);
  if (row.id !== user.id || !Number.isInteger(row.version)) {
    result.wrong += 1;
    return;
  }
  if (row.version >= expected.now) return;
  result.stale += 1;
  if (row.version >= expected.bound) return;
  result.late += 1;
  // How long ago the version that follows the one it got was acknowledged, at least.
  const missing = expected.history.find((ack) => ack.version > row.version);
  result.worst_late_ms = Math.max(result.worst_late_ms, began - missing.at);
}

async function reader(number) {
  const interval = (1000 * load.readers) / load.reads_per_second;
  let due = performance.now() + (interval * number) / load.readers;
  for (; due < END; due += interval) {
    await sleepUntil(due);
    await readOnce(due).catch((error) => failed('read_errors', error));
  }
}

// Writes the rows of its own, hot ones more often.
async function writer(number) {
  const interval = (1000 * load.writers) / load.writes_per_second;
  let due = performance.now() + (interval * number) / load.writers;
  for (; due < END; due += interval) {
    await sleepUntil(due);
    let index = pick();
    index -= index % load.writers;
    const user = state[(index + number) % load.users];
    const version = (user.version += 1);
    const body = JSON.stringify({
      name: `Name ${version}`, email: `${user.id}.${version}@example.org`, version,
    });
    try {
      await ask(load.updater, 'PUT', `/users/${user.id}`, body);
      user.acked.push({ version, at: performance.now() });
      if (due >= BEGIN) result.writes += 1;
    } catch (error) {
      failed('write_errors', error);
    }
  }
}

function percentile(q) {
  if (latencies.length === 0) return null;
  return latencies[Math.min(latencies.length - 1, Math.floor(q * latencies.length))];
}

async function main() {
  const tasks = [];
  for (let i = 0; i < load.readers; i += 1) tasks.push(reader(i));
  for (let i = 0; i < load.writers; i += 1) tasks.push(writer(i));
  await Promise.all(tasks);
  latencies.sort((a, b) => a - b);
  result.p50_ms = percentile(0.5);
  result.p99_ms = percentile(0.99);
  result.max_ms = latencies.at(-1) ?? null;
  process.stdout.write(`${JSON.stringify(result)}\n`);
  agent.destroy();
}

main();
