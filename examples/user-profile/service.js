// What all six services share: an HTTP server that says where it listens, and ends when told to.
'use strict';

const express = require('express');

// Listens on a free port and prints it; `close` runs before the process ends.
function serve(app, close) {
  const server = app.listen(0, '127.0.0.1', () => {
    process.stdout.write(`listening ${server.address().port}\n`);
  });
  server.keepAliveTimeout = 60_000;
  process.on('SIGTERM', async () => {
    server.close();
    server.closeAllConnections();
    await close();
    process.exit(0);
  });
}

// An express app whose handlers may be async; what they throw becomes a 503.
function service() {
  const app = express();
  app.disable('x-powered-by');
  app.disable('etag');
  app.use(express.json());
  app.fails = (error, _request, response, _next) => {
    process.stderr.write(`${error.message}\n`);
    response.status(503).json({ error: error.message });
  };
  return app;
}

module.exports = { serve, service };
