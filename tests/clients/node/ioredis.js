// ioredis with its defaults. IOREDIS names the installed version: ioredis-5 or ioredis-6.
const { host, port, declared, check, errorOf, field, run } = require('./checks.js');
const name = process.env.IOREDIS || 'ioredis-5';
const { Redis } = require(name);
const prefix = `${name}:${process.pid}`;

async function strings(r) {
  const [a, b] = [`${prefix}:a`, `${prefix}:b`];
  check('ping', (await r.ping()) === 'PONG');
  check('set', (await r.set(a, 'one')) === 'OK');
  check('get', (await r.get(a)) === 'one');
  check('get of an absent key', (await r.get(`${prefix}:absent`)) === null);
  check('set ex', (await r.set(b, 'two', 'EX', 100)) === 'OK');
  const ttl = await r.ttl(b);
  check('ttl', ttl >= 98 && ttl <= 100);
  check('set nx on a present key', (await r.set(a, 'other', 'NX')) === null);
  const values = await r.mget(a, `${prefix}:absent`, b);
  check('mget', JSON.stringify(values) === '["one",null,"two"]');
  check('incr', (await r.incrby(`${prefix}:n`, 42)) === 42);
  check('del', (await r.del(a, b)) === 2);
}

async function pipeline(r) {
  const p = r.pipeline();
  for (let i = 0; i < 500; i++) p.set(`${prefix}:p:${i}`, i).get(`${prefix}:p:${i}`);
  const answers = await p.exec();
  check('pipeline', answers.every(([error]) => error === null));
  check('pipeline gets', answers.every(([, v], i) => (i % 2 ? v === String(i >> 1) : v === 'OK')));
  const found = new Set();
  for await (const keys of r.scanStream({ match: `${prefix}:p:*`, count: 50 })) {
    keys.forEach((key) => found.add(key));
  }
  check('scan finds all', found.size === 500);
}

async function transactions(r, other) {
  const key = `${prefix}:watched`;
  const answers = await r.multi().set(key, 1).incr(key).exec();
  check('multi, exec', JSON.stringify(answers) === '[[null,"OK"],[null,2]]');
  await r.watch(key);
  await other.set(key, 10);
  check('exec after a conflict', (await r.multi().set(key, 3).exec()) === null);
  check('the value of the other writer', (await r.get(key)) === '10');
}

async function pubsub(r) {
  const listener = new Redis(port, host);
  const message = new Promise((resolve) => listener.on('message', (...args) => resolve(args)));
  check('subscribe', (await listener.subscribe(`${prefix}:news`)) === 1);
  check('publish reaches one', (await r.publish(`${prefix}:news`, 'hello')) === 1);
  check('message', (await message).join() === `${prefix}:news,hello`);
  await listener.unsubscribe();
  await listener.quit();
}

async function rows(r) {
  const row = JSON.parse(await r.get('product:1'));
  check('a row as JSON', row.id === 1 && typeof row.name === 'string');
  row.price += 1;
  check('set of a declared key', (await r.set('product:1', JSON.stringify(row))) === 'OK');
  check('the new price', JSON.parse(await r.get('product:1')).price === row.price);
  const [present, absent] = await r.mget('product:1', 'product:999999');
  check('mget', JSON.parse(present).price === row.price && absent === null);
  const explained = await r.call('LARDER.EXPLAIN', 'product:1');
  check('explain', field(explained, 'cache') === 'product');
  check('a bad id', (await errorOf(r.get('product:abc'))).startsWith('LARDER_BADKEY'));
}

run(name, async () => {
  const r = new Redis(port, host);
  const other = new Redis(port, host);
  await strings(r);
  await pipeline(r);
  await transactions(r, other);
  await pubsub(r);
  check('unknown command', (await errorOf(r.call('NOSUCH', 1))).includes('unknown command'));
  if (declared) await rows(r);
  check('quit', (await r.quit()) === 'OK');
  await other.quit();
});
