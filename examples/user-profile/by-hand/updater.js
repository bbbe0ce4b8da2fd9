// PUT /users/:id: writes the database, then tells the caches.
'use strict';

const Database = require('better-sqlite3');
const { serve, service } = require('../service');
const { connect, CHANNEL } = require('./redis');

const db = new Database(process.env.DATABASE, { timeout: 2_000 });
const update = db.prepare(
  `INSERT INTO user(id, name, email, version) VALUES (@id, @name, @email, @version)
   ON CONFLICT(id) DO UPDATE SET name = @name, email = @email, version = @version`,
);
const redis = connect();

// What could not be told because Redis was down: said again until it is heard. (If this process
// ends before that, the entries stay old until their TTL.)
const untold = new Set();

async function invalidate(id) {
  await redis
    .multi()
    .del(`user:${id}`)
    .publish(CHANNEL, JSON.stringify({ type: 'user', id }))
    .exec();
}

async function tell(id) {
  try {
    await invalidate(id);
    untold.delete(id);
  } catch {
    untold.add(id);
  }
}

const retry = setInterval(() => {
  for (const id of untold) tell(id);
}, 200);

const app = service();
app.put('/users/:id', async (request, response) => {
  const { id } = request.params;
  const { name, email, version } = request.body;
  update.run({ id, name, email, version });
  await tell(id);
  response.json({ id, version });
});
app.use(app.fails);
serve(app, async () => {
  clearInterval(retry);
  redis.disconnect();
  db.close();
});
