// A connection to the cache that fails fast: a cache that is down must not take its users along.
'use strict';

const Redis = require('ioredis');

const options = {
  host: '127.0.0.1',
  port: Number(process.env.REDIS_PORT),
  maxRetriesPerRequest: 0,
  enableOfflineQueue: false,
  commandTimeout: 250,
  retryStrategy: (attempt) => Math.min(50 * attempt, 500),
};

function connect(more = {}) {
  const redis = new Redis({ ...options, ...more });
  redis.on('error', () => {}); // each command says so itself, and ioredis connects again
  return redis;
}

module.exports = { connect, CHANNEL: 'cache-invalidation' };
