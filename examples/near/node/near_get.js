// Looks up keys in the near tier of this host's node.
//
//   node near_get.js NAME    NAME is the node's near.shared; one key a line on standard input
'use strict';

const readline = require('readline');
const { Near } = require('./larder_near.js');

let near;
try {
  near = new Near(process.argv[2], process.env.LARDER_NEAR_LIBRARY);
} catch (error) {
  console.error(`${process.argv[2]}: ${error.message}`);
  process.exit(1);
}
const lines = readline.createInterface({ input: process.stdin });
lines.on('line', (key) => {
  const { result, value } = near.look(key);
  console.log(value === undefined ? result : `${result} ${value}`);
});
lines.on('close', () => near.close());
