// PUT /users/:id. With UPDATES=set Larder writes the row (write = "through"); with UPDATES=sql this
// service writes the database itself, as any program may, and Larder hears of it from the database.
'use strict';

const Database = require('better-sqlite3');
const { serve, service } = require('../service');
const larder = require('./larder');

const db = new Database(process.env.DATABASE, { timeout: 2_000 });
const update = db.prepare(
  `INSERT INTO user(id, name, email, version) VALUES (@id, @name, @email, @version)
   ON CONFLICT(id) DO UPDATE SET name = @name, email = @email, version = @version`,
);

const app = service();
app.put('/users/:id', async (request, response) => {
  const { id } = request.params;
  const { name, email, version } = request.body;
  if (process.env.UPDATES === 'sql') {
    update.run({ id, name, email, version });
  } else {
    await larder.set(`user:${id}`, JSON.stringify({ id, name, email, version }));
  }
  response.json({ id, version });
});
app.use(app.fails);
serve(app, async () => {
  larder.disconnect();
  db.close();
});
