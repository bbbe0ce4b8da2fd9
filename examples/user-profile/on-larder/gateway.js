// GET /users/:id for the world.
'use strict';

const { serve, service } = require('../service');
const larder = require('./larder');

const app = service();
app.get('/users/:id', async (request, response) => {
  const body = await larder.get(`user:${request.params.id}`);
  if (body === null) return response.status(404).json({ error: 'no such user' });
  response.type('json').send(body);
});
app.use(app.fails);
serve(app, async () => larder.disconnect());
