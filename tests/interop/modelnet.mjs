// A second, independent reader and writer of our records and of our part of the kad protocol, in one
// file without packages: canonical msgpack, libp2p signed envelopes, kad messages with our extension
// fields. docs/protocol.md says what it follows; whoever wants to speak with our network from js may copy it.
//
//   const key = keyOf('public', 'task/text-classification')
//   const reply = parseMessage(bytes)                   // of a GET_PROVIDERS stream
//   for (const sealed of reply.records) offer = openOffer(sealed, { network: 'public' })  // or throws
import { createHash, createPrivateKey, createPublicKey, sign, verify } from 'node:crypto'

export const sha256 = (data) => createHash('sha256').update(data).digest()

// --- canonical msgpack: sorted string keys, shortest encodings, integers only ---

function uint (value, bytes) {
  const out = Buffer.alloc(bytes)
  for (let at = bytes - 1, rest = BigInt.asUintN(bytes * 8, BigInt(value)); at >= 0; at--, rest >>= 8n) {
    out[at] = Number(rest & 0xffn)
  }
  return out
}

function header (length, fix, limit, codes) {
  if (length < limit) return Buffer.from([fix | length])
  const bytes = [1, 2, 4].find((width) => codes[width] !== undefined && length < 2 ** (8 * width))
  return Buffer.concat([Buffer.from([codes[bytes]]), uint(length, bytes)])
}

function integer (value) {
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

export function pack (value) {
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

export function unpack (data) {
  // what is no canonical encoding does not come out of `pack` again as it went in
  let at = 0
  const take = (count) => {
    if (at + count > data.length) throw new RangeError('cut off')
    at += count
    return data.subarray(at - count, at)
  }
  const number = (bytes) => Number(BigInt('0x' + take(bytes).toString('hex')))
  const signed = (bytes) => Number(BigInt.asIntN(8 * bytes, BigInt('0x' + take(bytes).toString('hex'))))
  const list = (count, depth) => Array.from({ length: count }, () => value(depth))
  const entries = (count, depth) => {
    const found = []
    for (let i = 0; i < count; i++) found.push([value(depth), value(depth)])
    return Object.fromEntries(found)
  }
  function value (depth) {
    if (depth > 16) throw new RangeError('too deep')
    const code = take(1)[0]
    if (code < 0x80) return code
    if (code < 0x90) return entries(code & 15, depth + 1)
    if (code < 0xa0) return list(code & 15, depth + 1)
    if (code < 0xc0) return take(code & 31).toString('utf8')
    if (code >= 0xe0) return code - 256
    switch (code) {
      case 0xc0: return null
      case 0xc2: return false
      case 0xc3: return true
      case 0xc4: case 0xc5: case 0xc6: return Buffer.from(take(number(1 << (code - 0xc4))))
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return number(1 << (code - 0xcc))
      case 0xd0: case 0xd1: case 0xd2: case 0xd3: return signed(1 << (code - 0xd0))
      case 0xd9: case 0xda: case 0xdb: return take(number(1 << (code - 0xd9))).toString('utf8')
      case 0xdc: case 0xdd: return list(number(2 << (code - 0xdc)), depth + 1)
      case 0xde: case 0xdf: return entries(number(2 << (code - 0xde)), depth + 1)
    }
    throw new RangeError(`byte ${code} begins no value`)
  }
  const found = value(0)
  if (at !== data.length || !pack(found).equals(data)) throw new RangeError('not canonical')
  return found
}

// --- protobuf ---

export function uvarint (number) {
  const out = []
  for (; number > 0x7f; number = Math.floor(number / 128)) out.push((number & 0x7f) | 0x80)
  return Buffer.from([...out, number])
}

export function readUvarint (data, at = 0) {
  let number = 0
  for (let scale = 1; ; scale *= 128) {
    if (at >= data.length || scale > 2 ** 42) throw new RangeError('cut off')
    const byte = data[at++]
    number += (byte & 0x7f) * scale
    if (byte < 0x80) return { number, at }
  }
}

export const prefixed = (data) => Buffer.concat([uvarint(data.length), data])
export const field = (number, data) => Buffer.concat([uvarint((number << 3) | 2), prefixed(data)])
export const small = (number, value) => Buffer.concat([uvarint(number << 3), uvarint(value)])

// The fields of a protobuf message: { number: [values, in order] }; bytes, or numbers for varints.
function fields (data) {
  const found = {}
  for (let at = 0; at < data.length;) {
    let number, tag
    ({ number: tag, at } = readUvarint(data, at))
    ;({ number, at } = readUvarint(data, at))
    let value = number
    if ((tag & 7) === 2) {
      if (at + number > data.length) throw new RangeError('cut off')
      value = data.subarray(at, at += number)
    } else if ((tag & 7) !== 0) throw new RangeError(`wire type ${tag & 7}`)
    ;(found[tag >>> 3] ??= []).push(value)
  }
  return found
}

// --- keys and envelopes ---

const DER_SECRET = Buffer.from('302e020100300506032b657004220420', 'hex') // in front of a seed
const DER_PUBLIC = Buffer.from('302a300506032b6570032100', 'hex') // in front of a raw public key
const ED25519 = Buffer.from('08011220', 'hex') // in front of a raw public key in libp2p's form
const IDENTITY = Buffer.from('0024', 'hex') // in front of that in a peer id

export function keyPair (seed) {
  const secret = createPrivateKey({ key: Buffer.concat([DER_SECRET, seed]), format: 'der', type: 'pkcs8' })
  const raw = createPublicKey(secret).export({ format: 'der', type: 'spki' }).subarray(-32)
  const publicKey = Buffer.concat([ED25519, raw])
  return { secret, publicKey, id: Buffer.concat([IDENTITY, publicKey]) }
}

const signedBytes = (type, payload) =>
  Buffer.concat([Buffer.from('modelnet-record'), Buffer.from(type), payload].map(prefixed))

export function seal (type, payload, key) {
  const signature = sign(null, signedBytes(type, payload), key.secret)
  const parts = [field(1, key.publicKey), field(2, Buffer.from(type)), field(3, payload), field(5, signature)]
  return Buffer.concat(parts)
}

// What an envelope holds and who sealed it; throws where its seal is not sound.
export function open (envelope) {
  const { 1: [publicKey] = [], 2: [type] = [], 3: [payload] = [], 5: [signature] = [] } = fields(envelope)
  if (!publicKey || !type || !payload || !signature) throw new Error('unsigned')
  if (publicKey.length !== 36 || !publicKey.subarray(0, 4).equals(ED25519)) throw new Error('not an Ed25519 key')
  const der = Buffer.concat([DER_PUBLIC, publicKey.subarray(4)])
  const key = createPublicKey({ key: der, format: 'der', type: 'spki' })
  if (!verify(null, signedBytes(type, payload), key, signature)) throw new Error('forged')
  return { signer: Buffer.concat([IDENTITY, publicKey]), type: type.toString(), record: unpack(payload) }
}

const DAY = 86_400_000_000
const SKEW = 300_000_000 // microseconds by which clocks may differ

// An offer and its manifest, both seals checked, of this network and alive; or an error that says why not.
export function openOffer (envelope, { network, now = Date.now() * 1000 }) {
  if (envelope.length > 4096) throw new Error('oversized')
  const { signer, type, record } = open(envelope)
  if (type !== '/modelnet/offer/1') throw new Error(`a record of type ${type}`)
  const manifest = open(record.manifest)
  if (manifest.type !== '/modelnet/manifest/1') throw new Error('no manifest inside')
  if (!manifest.record.owner.equals(manifest.signer) || !record.provider.equals(signer)) {
    throw new Error('wrong_owner')
  }
  if (record.network !== network) throw new Error('foreign_key')
  if (record.expires <= now || record.issued > now + SKEW) throw new Error('expired')
  if (record.expires <= record.issued || record.expires - record.issued > DAY) throw new Error('malformed')
  return { ...record, manifest: manifest.record }
}

// An offer of `model` ({name, task, …}) that `key` owns and provides, for two hours.
export function sealOffer (model, key, { network, now = Date.now() * 1000, ...more }) {
  const issued = Math.floor(now / 1_000_000) * 1_000_000
  const manifest = seal('/modelnet/manifest/1', pack({ owner: key.id, ...model, issued }), key)
  const times = { seq: Math.floor(now / 1000), issued, expires: issued + 7_200_000_000 }
  return seal('/modelnet/offer/1', pack({ provider: key.id, network, manifest, ...times, ...more }), key)
}

// What a card may say of its offer beside its names: marks of the words that searches ask for, and numbers.
export function summary (sealed, offer) {
  const specs = (list = []) => list.flatMap(({ kind, dtype }) => [kind, dtype])
  const languages = offer.languages ?? []
  const said = {
    tag: offer.tags,
    language: [...languages, ...languages.map((language) => language.split('-')[0])],
    licence: [offer.manifest.licence],
    precision: [offer.precision],
    tier: [offer.tier],
    access: [offer.access ?? 'open'],
    family: [offer.family],
    gives: offer.gives,
    input: specs(offer.inputs),
    output: specs(offer.outputs)
  }
  const mark = (name, word) =>
    sha256(Buffer.concat([sha256(sealed), Buffer.from(`${name}:${word.toLowerCase()}`)])).readUInt16BE(0)
  const marks = new Set(Object.entries(said).flatMap(([name, words = []]) =>
    words.filter(Boolean).map((word) => mark(name, word))))
  const found = { w: Buffer.concat([...marks].sort((one, other) => one - other).map((value) => uint(value, 2))) }
  if (offer.parameters !== undefined) found.a = offer.parameters
  if (offer.context_length !== undefined) found.c = offer.context_length
  const prices = Object.values(offer.price ?? {})
  if (prices.some((price) => price !== 0)) found.x = [Math.min(...prices), Math.max(...prices)]
  return found
}

// --- the DHT ---

export const ADD_PROVIDER = 2
export const GET_PROVIDERS = 3

// The multihash under which the records of e.g. `task/text-classification` lie.
export const keyOf = (network, name) =>
  Buffer.concat([Buffer.from([0x12, 0x20]), sha256(`/modelnet/${network}/${name}`)])

export const getProviders = (key) => prefixed(Buffer.concat([small(1, GET_PROVIDERS), field(2, key)]))

// Store one sealed record; `addresses` are binary multiaddrs at which `provider` can be dialled.
export function addProvider (key, provider, addresses, record) {
  const peer = Buffer.concat([field(1, provider), ...addresses.map((address) => field(2, address))])
  return prefixed(Buffer.concat([small(1, ADD_PROVIDER), field(2, key), field(9, peer), field(64, record)]))
}

// A kad message without its length in front. `records` is undefined where a stock peer answered.
export function parseMessage (data) {
  const { 1: [type] = [0], 8: closer = [], 9: providers = [], 64: records, 65: [cursor] = [], 66: [refused] = [] } =
    fields(data)
  const peer = (bytes) => {
    const { 1: [id], 2: addresses = [] } = fields(bytes)
    return { id, addresses }
  }
  return {
    type,
    closer: closer.map(peer),
    providers: providers.map(peer),
    records: records?.filter((record) => record.length > 0),
    cursor,
    refused: refused?.toString()
  }
}
