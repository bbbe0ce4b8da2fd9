// The same client, pointed at Larder.
'use strict';

const Redis = require('ioredis');

module.exports = new Redis({ host: '127.0.0.1', port: Number(process.env.LARDER_PORT) });
