// What the two Node scripts share: where the node is, counting, and the shape of an explained entry.
const host = process.env.LARDER_HOST;
const port = Number(process.env.LARDER_PORT);
const declared = (process.env.LARDER_DECLARED || '1') === '1';
let checks = 0;

function check(what, condition) {
  if (!condition) throw new Error(what);
  checks += 1;
}

// The message of the error that the promise ends with, or ''.
async function errorOf(promise) {
  try {
    await promise;
    return '';
  } catch (error) {
    return error.message;
  }
}

// A map as each protocol gives it: an object, a Map, or a flat list of names and values.
function field(map, name) {
  if (map instanceof Map) return map.get(name);
  if (!Array.isArray(map)) return map[name];
  return map[map.indexOf(name) + 1];
}

function run(name, main) {
  const timer = setTimeout(() => fail(new Error('no end after 60 s')), 60_000);
  function fail(error) {
    console.error(`${name}: ${error.stack}`);
    process.exit(1);
  }
  main().then(() => {
    clearTimeout(timer);
    console.log(`ok: ${checks} checks (${name})`);
  }, fail);
}

module.exports = { host, port, declared, check, errorOf, field, run };
