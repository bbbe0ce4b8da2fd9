// The same profiles for services that want several at once. It has no SQL: Larder loads.
'use strict';

const { serve, service } = require('../service');
const larder = require('./larder');

const app = service();
app.get('/users', async (request, response) => {
  const ids = String(request.query.ids ?? '').split(',').filter(Boolean);
  const bodies = ids.length > 0 ? await larder.mget(ids.map((id) => `user:${id}`)) : [];
  response.type('json').send(`[${bodies.filter((body) => body !== null).join(',')}]`);
});
app.get('/users/:id', async (request, response) => {
  const body = await larder.get(`user:${request.params.id}`);
  if (body === null) return response.status(404).json({ error: 'no such user' });
  response.type('json').send(body);
});
app.use(app.fails);
serve(app, async () => larder.disconnect());
