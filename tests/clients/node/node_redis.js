// node-redis with its defaults. NODE_REDIS names the installed version: redis-5 or redis-6.
const { host, port, declared, check, errorOf, field, run } = require('./checks.js');
const name = process.env.NODE_REDIS || 'redis-5';
const { createClient } = require(name);
const prefix = `node-${name}:${process.pid}`;

function connect(options = {}) {
  const client = createClient({ url: `redis://${host}:${port}`, ...options });
  client.on('error', (error) => {
    throw error;
  });
  return client.connect();
}

async function strings(r) {
  const [a, b] = [`${prefix}:a`, `${prefix}:b`];
  check('ping', (await r.ping()) === 'PONG');
  check('set', (await r.set(a, 'one')) === 'OK');
  check('get', (await r.get(a)) === 'one');
  check('get of an absent key', (await r.get(`${prefix}:absent`)) === null);
  check('set ex', (await r.set(b, 'two', { EX: 100 })) === 'OK');
  const ttl = await r.ttl(b);
  check('ttl', ttl >= 98 && ttl <= 100);
  check('set nx on a present key', (await r.set(a, 'other', { NX: true })) === null);
  const values = await r.mGet([a, `${prefix}:absent`, b]);
  check('mget', JSON.stringify(values) === '["one",null,"two"]');
  check('incr', (await r.incrBy(`${prefix}:n`, 1)) >= 1);
  check('del', (await r.del([a, b])) === 2);
}

async function pipeline(r) {
  // Commands issued in one tick travel together: this client's automatic pipelining.
  const keys = Array.from({ length: 500 }, (_, i) => `${prefix}:p:${i}`);
  await Promise.all(keys.map((key, i) => r.set(key, String(i))));
  const values = await Promise.all(keys.map((key) => r.get(key)));
  check('pipeline', values.every((value, i) => value === String(i)));
  const found = new Set();
  for await (const batch of r.scanIterator({ MATCH: `${prefix}:p:*`, COUNT: 50 })) {
    batch.forEach((key) => found.add(key));
  }
  check('scan finds all', found.size === 500);
}

async function transactions(r, other) {
  const key = `${prefix}:watched`;
  const answers = await r.multi().set(key, '1').incr(key).exec();
  check('multi, exec', JSON.stringify(answers) === '["OK",2]');
  await r.watch(key);
  await other.set(key, '10');
  check('exec after a conflict', (await errorOf(r.multi().set(key, '3').exec())) !== '');
  check('the value of the other writer', (await r.get(key)) === '10');
}

async function pubsub(r) {
  const listener = await connect();
  let seen;
  const message = new Promise((resolve) => (seen = resolve));
  await listener.subscribe(`${prefix}:news`, (...args) => seen(args));
  check('publish reaches one', (await r.publish(`${prefix}:news`, 'hello')) === 1);
  check('message', (await message).join() === `hello,${prefix}:news`);
  await listener.unsubscribe();
  await listener.close();
}

async function rows(r) {
  const row = JSON.parse(await r.get('product:1'));
  check('a row as JSON', row.id === 1 && typeof row.name === 'string');
  row.price += 1;
  check('set of a declared key', (await r.set('product:1', JSON.stringify(row))) === 'OK');
  check('the new price', JSON.parse(await r.get('product:1')).price === row.price);
  const [present, absent] = await r.mGet(['product:1', 'product:999999']);
  check('mget', JSON.parse(present).price === row.price && absent === null);
  const explained = await r.sendCommand(['LARDER.EXPLAIN', 'product:1']);
  check('explain', field(explained, 'cache') === 'product');
  check('a bad id', (await errorOf(r.get('product:abc'))).startsWith('LARDER_BADKEY'));
}

// The client's own cache, kept right by CLIENT TRACKING.
async function clientSideCaching(other) {
  const r = await connect({
    RESP: 3,
    clientSideCache: { ttl: 0, maxEntries: 0, evictPolicy: 'LRU' },
  });
  const becomes = async (what, key, wanted) => {
    const end = Date.now() + 10000;
    while ((await r.get(key)) !== wanted && Date.now() < end) {
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    check(what, (await r.get(key)) === wanted);
  };
  const served = async () =>
    Number(/total_commands_processed:(\d+)/.exec(await other.info('stats'))[1]);
  const key = `${prefix}:cached`;
  await other.set(key, 'one');
  check('a value to cache', (await r.get(key)) === 'one');
  const before = await served();
  for (let i = 0; i < 100; ++i) check('a cached value', (await r.get(key)) === 'one');
  check('the server was not asked', (await served()) - before < 50);
  await other.set(key, 'two');
  await becomes("the other's write is seen", key, 'two');
  await r.set(key, 'own');
  await becomes('its own write is seen', key, 'own');
  await other.sendCommand(['FLUSHALL']);
  await becomes('a flush is seen', key, null);
  if (declared) {
    const row = JSON.parse(await r.get('product:1'));
    row.price += 1;
    await other.set('product:1', JSON.stringify(row));
    const written = await other.get('product:1');
    await becomes('the row that was written', 'product:1', written);
  }
  await r.close();
}

run(`node-${name}`, async () => {
  const r = await connect();
  const other = await connect();
  const resp3 = await connect({ RESP: 3 });
  await strings(r);
  await strings(resp3);
  await pipeline(r);
  await transactions(r, other);
  await pubsub(r);
  const error = await errorOf(r.sendCommand(['NOSUCH', '1']));
  check('unknown command', error.includes('unknown command'));
  if (declared) {
    await rows(r);
    await rows(resp3);
  }
  await clientSideCaching(other);
  for (const client of [r, other, resp3]) await client.close();
});
