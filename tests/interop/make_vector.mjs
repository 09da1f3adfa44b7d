// A second, independent writer of our records: canonical msgpack, libp2p signed envelopes, kad
// messages. No npm packages. Prints the vector that tests/values/vectors/js.json holds:
//   node tests/interop/make_vector.mjs > tests/values/vectors/js.json
import { createHash, createPrivateKey, createPublicKey, sign } from 'node:crypto'

// --- canonical msgpack: sorted string keys, shortest encodings, integers only ---

function uint(value, bytes) {
  const out = Buffer.alloc(bytes)
  for (let at = bytes - 1, rest = BigInt.asUintN(bytes * 8, BigInt(value)); at >= 0; at--, rest >>= 8n) {
    out[at] = Number(rest & 0xffn)
  }
  return out
}

function header(length, fix, limit, codes) {
  if (length < limit) return Buffer.from([fix | length])
  const bytes = [1, 2, 4].find((width) => codes[width] !== undefined && length < 2 ** (8 * width))
  return Buffer.concat([Buffer.from([codes[bytes]]), uint(length, bytes)])
}

function integer(value) {
  const big = BigInt(value)
  if (big >= 0n && big < 128n) return Buffer.from([Number(big)])
  if (big < 0n && big >= -32n) return Buffer.from([256 + Number(big)])
  for (const [index, bytes] of [1, 2, 4, 8].entries()) {
    const bits = BigInt(8 * bytes)
    if (big >= 0n && big < 1n << bits) return Buffer.concat([Buffer.from([0xcc + index]), uint(big, bytes)])
    if (big < 0n && big >= -(1n << (bits - 1n))) {
      return Buffer.concat([Buffer.from([0xd0 + index]), uint(big, bytes)])
    }
  }
  throw new RangeError(`${value} has more than 64 bits`)
}

function pack(value) {
  if (value === null) return Buffer.from([0xc0])
  if (typeof value === 'boolean') return Buffer.from([value ? 0xc3 : 0xc2])
  if (typeof value === 'bigint' || Number.isSafeInteger(value)) return integer(value)
  if (typeof value === 'string') {
    const utf8 = Buffer.from(value, 'utf8')
    return Buffer.concat([header(utf8.length, 0xa0, 32, { 1: 0xd9, 2: 0xda, 4: 0xdb }), utf8])
  }
  if (Buffer.isBuffer(value)) {
    return Buffer.concat([header(value.length, 0, 0, { 1: 0xc4, 2: 0xc5, 4: 0xc6 }), value])
  }
  if (Array.isArray(value)) {
    return Buffer.concat([header(value.length, 0x90, 16, { 2: 0xdc, 4: 0xdd }), ...value.map(pack)])
  }
  if (typeof value === 'object') {
    const entries = Object.entries(value).map(([key, item]) => [Buffer.from(key, 'utf8'), key, item])
    entries.sort((a, b) => Buffer.compare(a[0], b[0])) // by UTF-8 bytes; sort() alone goes by UTF-16
    const body = entries.flatMap(([, key, item]) => [pack(key), pack(item)])
    return Buffer.concat([header(entries.length, 0x80, 16, { 2: 0xde, 4: 0xdf }), ...body])
  }
  throw new TypeError(`${typeof value} has no canonical form`)
}

// --- protobuf, keys and envelopes ---

function uvarint(number) {
  const out = []
  for (; number > 0x7f; number = Math.floor(number / 128)) out.push((number & 0x7f) | 0x80)
  return Buffer.from([...out, number])
}

const prefixed = (data) => Buffer.concat([uvarint(data.length), data])
const field = (number, data) => Buffer.concat([uvarint((number << 3) | 2), prefixed(data)])

function keyPair(name) {
  const seed = Buffer.alloc(32, '.')
  seed.write(name)
  const der = Buffer.concat([Buffer.from('302e020100300506032b657004220420', 'hex'), seed])
  const secret = createPrivateKey({ key: der, format: 'der', type: 'pkcs8' })
  const raw = createPublicKey(secret).export({ format: 'der', type: 'spki' }).subarray(-32)
  const publicKey = Buffer.concat([Buffer.from([0x08, 0x01]), field(2, raw)])
  return { secret, publicKey, id: Buffer.concat([Buffer.from([0x00, publicKey.length]), publicKey]) }
}

function seal(type, payload, key) {
  const parts = [Buffer.from('modelnet-record'), Buffer.from(type), payload]
  const signature = sign(null, Buffer.concat(parts.map(prefixed)), key.secret)
  const fields = [field(1, key.publicKey), field(2, parts[1]), field(3, payload), field(5, signature)]
  return Buffer.concat(fields)
}

// --- the vector: Alice owns a model, Bob serves it ---

const alice = keyPair('alice')
const bob = keyPair('bob')
const now = 1_900_000_000_000_000
const digest = Buffer.from(Array.from({ length: 32 }, (_, at) => at))
const model = { name: 'acme/sentiment', version: '2', task: 'text-classification' }

const manifest = seal('/modelnet/manifest/1', pack({
  owner: alice.id, ...model, licence: 'Apache-2.0', digest, issued: 1_890_000_000_000_000,
  metrics: { accuracy: 973_000, loss: -12 }
}), alice)

const offer = seal('/modelnet/offer/1', pack({
  provider: bob.id, network: 'public', manifest, seq: 1_900_000_000_000,
  issued: now, expires: now + 7_200_000_000, framework: 'torch', tags: ['fast'],
  inputs: [{ name: 'text', kind: 'text' }],
  outputs: [{ name: 'scores', kind: 'tensor', dtype: 'float32', shape: [null, 2] }],
  'x-müsli': 'é', 'x-\u{1f600}': [-33, 255, 65_536, 2 ** 40], 'x-\uffee': true
}), bob)

const card = seal('/modelnet/card/1', pack({
  p: bob.id, n: 'public', o: alice.id, m: model.name, v: model.version, t: model.task, g: 'fast',
  d: digest, f: 'torch', s: 1_900_000_000_000, e: now + 7_200_000_000,
  h: createHash('sha256').update(offer).digest()
}), bob)

const tombstone = seal('/modelnet/tombstone/1', pack({
  provider: bob.id, network: 'public', owner: alice.id, ...model, tags: ['fast'], digest,
  seq: 1_900_000_000_001, issued: now, expires: now + 7_500_000_000
}), bob)

const name = '/modelnet/public/model/acme/sentiment'
const key = Buffer.concat([Buffer.from([0x12, 0x20]), createHash('sha256').update(name).digest()])
const address = Buffer.from('047f000001060fa1', 'hex')
const peer = Buffer.concat([field(1, bob.id), field(2, address)])
const message = Buffer.concat([
  Buffer.from([0x08, 0x02]), field(2, key), field(9, peer), field(64, offer)
])

const hex = { manifest, offer, card, tombstone, add_provider: prefixed(message) }
const shown = Object.fromEntries(Object.entries(hex).map(([what, data]) => [what, data.toString('hex')]))
console.log(JSON.stringify({ made_by: 'tests/interop/make_vector.mjs', now_us: now, key: key.toString('hex'), ...shown }, null, 2))
