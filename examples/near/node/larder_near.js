// The near tier of this host's Larder node, read from shared memory. Needs liblarder_near.so alone.
//
//   const near = new Near('shop');            // the node's near.shared
//   const product = await near.get('product:7', (key) => redis.get(key));
'use strict';

const koffi = require('koffi');

const RESULTS = {
  0: 'FOUND', 1: 'ABSENT', 2: 'MISS', 3: 'TOO_SMALL', 4: 'NODE_DOWN', 5: 'RESTARTED',
  '-1': 'INVALID', '-2': 'NOT_FOUND', '-3': 'DENIED', '-4': 'VERSION', '-5': 'CORRUPT', '-6': 'SYSTEM',
};

koffi.opaque('larder_near');

function load(path) {
  const library = koffi.load(path);
  return {
    open: library.func('int larder_near_open(const char *name, _Out_ larder_near **handle)'),
    get: library.func('int larder_near_get(larder_near *handle, const void *key, size_t key_size, ' +
                      'void *buffer, size_t capacity, _Out_ size_t *size)'),
    close: library.func('void larder_near_close(larder_near *handle)'),
    text: library.func('const char *larder_near_text(int result)'),
  };
}

class Near {
  #library;
  #handle;
  #buffer = Buffer.allocUnsafe(4096);

  constructor(name, path = 'liblarder_near.so') {
    this.#library = load(path);
    const handle = [null];
    this.#check(this.#library.open(name, handle));
    this.#handle = handle[0];
  }

  // { result, value }: FOUND with a Buffer; ABSENT, MISS, NODE_DOWN or RESTARTED without one.
  look(key) {
    const bytes = Buffer.from(key);
    const size = [0];
    for (;;) {
      const result = this.#library.get(this.#handle, bytes, bytes.length, this.#buffer,
                                       this.#buffer.length, size);
      if (RESULTS[result] === 'FOUND') {
        return { result: 'FOUND', value: Buffer.from(this.#buffer.subarray(0, Number(size[0]))) };
      }
      if (RESULTS[result] !== 'TOO_SMALL') {
        this.#check(result);
        return { result: RESULTS[result] };
      }
      this.#buffer = Buffer.allocUnsafe(Number(size[0]));
    }
  }

  // The value from here, or else what ask(key) answers; null if there is no such row.
  async get(key, ask) {
    let found = this.look(key);
    if (found.result === 'RESTARTED') found = this.look(key);
    if (found.result === 'FOUND') return found.value.toString();
    return found.result === 'ABSENT' ? null : ask(key);
  }

  close() {
    this.#library.close(this.#handle);
    this.#handle = null;
  }

  #check(result) {
    if (result >= 0) return;
    const error = new Error(this.#library.text(result));
    error.code = RESULTS[result];
    throw error;
  }
}

module.exports = { Near };
