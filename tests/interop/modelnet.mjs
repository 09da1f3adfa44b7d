// A second, independent reader and writer of our records, of our part of the kad protocol and of plain calls,
// in one file without packages: canonical msgpack, libp2p signed envelopes, kad messages with our extension
// fields, frames. docs/protocol.md says what it follows, docs/interop.md how it is used; whoever wants to
// speak with our network from js may copy it.
//
//   const key = keyOf('public', 'task/text-classification')
//   const reply = parseMessage(bytes)                   // of a GET_PROVIDERS stream
//   for (const sealed of reply.records) offer = openOffer(sealed, { network: 'public' })  // or throws
import { createHash, createPrivateKey, createPublicKey, sign, verify } from 'node:crypto'

// 32 bytes, as a Buffer; multiformats' `sha256` is another thing: a hasher whose `digest` gives a multihash.
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

// `float` is asked for what has no canonical form.
function packer (float) {
  return function pack (value) {
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
    return float(value)
  }
}

export const pack = packer((value) => { throw new TypeError(`${typeof value} has no canonical form`) })

// As `pack`, with floats: what calls carry.
const packValue = packer((value) => {
  if (typeof value !== 'number') throw new TypeError(`${typeof value} is no value`)
  const out = Buffer.alloc(9, 0xcb)
  out.writeDoubleBE(value, 1)
  return out
})

// The value that canonical msgpack holds; what is none does not come out of `pack` again as it went in.
export function unpack (data) {
  const found = unpackValue(data)
  if (!pack(found).equals(data)) throw new RangeError('not canonical')
  return found
}

function unpackValue (data) {
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
      case 0xcb: return take(8).readDoubleBE()
      case 0xcc: case 0xcd: case 0xce: case 0xcf: return number(1 << (code - 0xcc))
      case 0xd0: case 0xd1: case 0xd2: case 0xd3: return signed(1 << (code - 0xd0))
      case 0xd9: case 0xda: case 0xdb: return take(number(1 << (code - 0xd9))).toString('utf8')
      case 0xdc: case 0xdd: return list(number(2 << (code - 0xdc)), depth + 1)
      case 0xde: case 0xdf: return entries(number(2 << (code - 0xde)), depth + 1)
    }
    throw new RangeError(`byte ${code} begins no value`)
  }
  const found = value(0)
  if (at !== data.length) throw new RangeError('more than one value')
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

const ALPHABET = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'

// A peer id as it is written: 12D3Koo…
export function base58 (bytes) {
  let text = ''
  for (let rest = BigInt('0x' + bytes.toString('hex')); rest > 0n; rest /= 58n) text = ALPHABET[rest % 58n] + text
  return '1'.repeat(bytes.findIndex((byte) => byte !== 0)) + text
}

export function seal (type, payload, key) {
  const signature = sign(null, signedBytes(type, payload), key.secret)
  return written(key.publicKey, Buffer.from(type), payload, signature)
}

const JOINT = '/modelnet/joint/1' // what the root of a tree is signed as
const HASH = 16 // bytes; a path has seven of them at most
const hash = (kind, ...parts) => sha256(Buffer.concat([Buffer.from([kind]), ...parts])).subarray(0, HASH)
const leafOf = (type, payload) => hash(0, signedBytes(type, payload))
const pairOf = (...nodes) => hash(1, ...nodes.sort(Buffer.compare))

function rootOf (leaf, path) {
  if (!path.length || path.length % HASH || path.length > 7 * HASH) throw new Error('malformed')
  let node = leaf
  for (let at = 0; at < path.length; at += HASH) node = pairOf(node, path.subarray(at, at + HASH))
  return node
}

// Payloads of one type, at most 128, in envelopes of their own that share one signature: that of the root of a tree
// of hashes, to which each carries its path. One that is alone needs no tree.
export function sealTogether (type, payloads, key) {
  if (payloads.length < 2) return payloads.map((payload) => seal(type, payload, key))
  if (payloads.length > 128) throw new RangeError('more than 128 under one signature')
  const leaves = payloads.map((payload) => ({ payload, path: [] }))
  let level = leaves.map((leaf) => ({ node: leafOf(type, leaf.payload), below: [leaf] }))
  while (level.length > 1) {
    const above = []
    for (let at = 0; at < level.length; at += 2) {
      const [one, other] = level.slice(at, at + 2)
      if (!other) above.push(one) // who is odd goes up as it is
      else {
        for (const leaf of one.below) leaf.path.push(other.node)
        for (const leaf of other.below) leaf.path.push(one.node)
        above.push({ node: pairOf(one.node, other.node), below: [...one.below, ...other.below] })
      }
    }
    level = above
  }
  const signature = sign(null, signedBytes(JOINT, level[0].node), key.secret)
  return leaves.map(({ payload, path }) =>
    written(key.publicKey, Buffer.from(type), payload, signature, Buffer.concat(path)))
}

const written = (publicKey, type, payload, signature, path) => Buffer.concat([
  field(1, publicKey), field(2, type), field(3, payload), field(5, signature), ...(path ? [field(64, path)] : [])
])

// What an envelope holds and who sealed it; throws where its seal is not sound.
export function open (envelope) {
  const { 1: [publicKey] = [], 2: [type] = [], 3: [payload] = [], 5: [signature] = [], 64: [path] = [] } =
    fields(envelope)
  if (!publicKey || !type || !payload || !signature) throw new Error('unsigned')
  if (publicKey.length !== 36 || !publicKey.subarray(0, 4).equals(ED25519)) throw new Error('not an Ed25519 key')
  const der = Buffer.concat([DER_PUBLIC, publicKey.subarray(4)])
  const key = createPublicKey({ key: der, format: 'der', type: 'spki' })
  if (!written(publicKey, type, payload, signature, path).equals(envelope)) throw new Error('malformed') // not canonical
  if (path && type.toString() !== '/modelnet/card/1') throw new Error('malformed') // the others are sealed alone
  const signed = path ? signedBytes(JOINT, rootOf(leafOf(type, payload), path)) : signedBytes(type, payload)
  if (!verify(null, signed, key, signature)) throw new Error('forged')
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

// The card of a sealed offer: for its task's key, or for that of one of its tags. What finds it by either.
export const sealCard = (sealed, key, tag = '') => seal('/modelnet/card/1', cardOf(sealed, key, tag), key)

// The cards of several offers, for one key.
export const sealCards = (offers, key, tag = '') =>
  sealTogether('/modelnet/card/1', offers.map((sealed) => cardOf(sealed, key, tag)), key)

function cardOf (sealed, key, tag) {
  const { network, issued } = open(sealed).record
  const offer = openOffer(sealed, { network, now: issued })
  const { owner, name, version = '', task, digest } = offer.manifest
  const said = { g: tag, v: version, l: offer.part ?? '', f: offer.framework ?? '', d: digest ?? '' }
  const card = {
    ...{ p: key.id, n: network, o: owner, m: name, t: task, s: offer.seq, e: offer.expires, h: sha256(sealed) },
    ...Object.fromEntries(Object.entries(said).filter(([, value]) => value !== '')) // a default is left out
  }
  const full = pack({ ...card, ...summary(sealed, offer) })
  return seal('/modelnet/card/1', full, key).length <= 512 ? full : pack(card)
}

// All that a publisher stores of an offer of its own, and where: [[name of the key, record], …].
export function places (sealed, key) {
  const { network, issued } = open(sealed).record
  const { manifest, tags = [] } = openOffer(sealed, { network, now: issued })
  return [
    [`model/${manifest.name}`, sealed],
    [`peer/${base58(key.id)}`, sealed],
    ...(manifest.digest ? [[`digest/${manifest.digest.toString('hex')}`, sealed]] : []),
    ...(manifest.owner.equals(key.id) ? [] : [[`owner/${base58(manifest.owner)}`, sealed]]),
    [`task/${manifest.task}`, sealCard(sealed, key)],
    ...tags.map((tag) => [`tag/${tag}`, sealCard(sealed, key, tag)])
  ]
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

// The id of a protocol, `kad` or `call`, in the network of this name.
export const protocolOf = (network, part) =>
  `/modelnet/${network === 'public' ? '' : `${sha256(network).toString('hex', 0, 8)}/`}${part}/1.0.0`

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

export async function write (stream, bytes) {
  for (let at = 0; at < bytes.length; at += 60000) {
    if (!stream.send(bytes.subarray(at, at + 60000))) await stream.onDrain()
  }
}

// The reply to a request, on a stream of its own of the kad protocol, one of js-libp2p's or like them. Throws where
// none came in time: stock peers send none to ADD_PROVIDER.
export async function ask (stream, request, patience = 1000) {
  const timer = setTimeout(() => stream.abort(new Error('no reply')), patience)
  try {
    await write(stream, request)
    let got = Buffer.alloc(0)
    for await (const part of stream) {
      got = Buffer.concat([got, part.subarray()])
      const end = ending(got)
      if (end && got.length >= end.to) {
        stream.close().catch(() => {})
        return parseMessage(got.subarray(end.from, end.to))
      }
    }
    throw new Error('the stream ended before the reply')
  } finally {
    clearTimeout(timer)
  }
}

// Where the first message in these bytes lies, once all of its length is there.
function ending (bytes) {
  if (bytes.subarray(0, 3).every((byte) => byte >= 0x80)) return null
  const { number, at } = readUvarint(bytes)
  return { from: at, to: at + number }
}

// --- calls: one after another on a stream; no items, no tensors ---

const CALL = 1
const RESULT = 4
const FAULT = 5
const HEADER = 16
const MAX_HEAD = 65_536
const MAX_BODY = 1 << 20 // as much as one such call may hold here

function frame (kind, head, body = Buffer.alloc(0)) {
  const packed = pack(head)
  const start = Buffer.alloc(HEADER)
  start[0] = kind
  start.writeUInt32LE(packed.length, 4)
  start.writeBigUInt64LE(BigInt(body.length), 8)
  return Buffer.concat([start, packed, body])
}

// The first CALL in these bytes, { head, body, size }, or null while some of it is still to come.
function readCall (data) {
  if (data.length < HEADER) return null
  const [head, body] = [data.readUInt32LE(4), Number(data.readBigUInt64LE(8))]
  if (data[0] !== CALL || data[1] !== 0 || data.readUInt16LE(2) !== 0) throw new RangeError('no plain CALL')
  if (head > MAX_HEAD || body > MAX_BODY) throw new RangeError('a frame too large')
  const size = HEADER + head + body
  if (data.length < size) return null
  const said = head ? unpackValue(data.subarray(HEADER, HEADER + head)) : {}
  return { head: said, body: data.subarray(HEADER + head, size), size }
}

// Answers all calls on one stream of the call protocol. `models` are functions of (input, params) by name; a ping
// is told which there are; a search that is not told takes this peer for suspect.
export async function serve (stream, models) {
  let got = Buffer.alloc(0)
  try {
    for await (const part of stream) {
      got = Buffer.concat([got, part.subarray()])
      for (let call; (call = readCall(got)) !== null; got = got.subarray(call.size)) {
        await write(stream, await answer(call, models))
      }
    }
    await stream.close()
  } catch (error) {
    stream.abort(error) // a frame that is none, or the caller is gone
  }
}

async function answer ({ head, body }, models) {
  const fault = (code, message) => frame(FAULT, { code, message: message.split('\n')[0].slice(0, 500) })
  if (head.method === 'ping') {
    const loads = Object.fromEntries(Object.keys(models).map((name) => [name, 0]))
    return frame(RESULT, {}, packValue({ models: loads, unix_ms: Date.now() }))
  }
  if ((head.method ?? 'invoke') !== 'invoke') return fault('unknown-method', `${head.method} is not served here`)
  const name = head.target.replace(/^modelnet:/, '').split('?')[0].split('@')[0]
  if (!Object.hasOwn(models, name)) return fault('not-found', `${name} is not served here`)
  if (head.tree !== undefined) return fault('bad-input', 'tensors are not taken here')
  try {
    return frame(RESULT, {}, packValue(await models[name](unpackValue(body), head.params ?? {})))
  } catch (error) {
    return fault('model-error', String(error))
  }
}
