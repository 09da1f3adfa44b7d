// Prints the vector that tests/values/vectors/js.json holds, written by modelnet.mjs:
//   node tests/interop/make_vector.mjs > tests/values/vectors/js.json
import { addProvider, keyOf, keyPair, pack, seal, sealCard, sealCards, sealOffer, sha256 } from './modelnet.mjs'

const named = (name) => keyPair(Buffer.alloc(32, '.').fill(name, 0, name.length))

// --- the vector: Alice owns a model, Bob serves it ---

const alice = named('alice')
const bob = named('bob')
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

const names = {
  p: bob.id, n: 'public', o: alice.id, m: model.name, v: model.version, t: model.task, g: 'fast',
  d: digest, f: 'torch', s: 1_900_000_000_000, e: now + 7_200_000_000,
  h: sha256(offer)
}
const card = seal('/modelnet/card/1', pack(names), bob)
const summedUp = sealCard(offer, bob, 'fast')

const tombstone = seal('/modelnet/tombstone/1', pack({
  provider: bob.id, network: 'public', owner: alice.id, ...model, tags: ['fast'], digest,
  seq: 1_900_000_000_001, issued: now, expires: now + 7_500_000_000
}), bob)

const revocation = seal('/modelnet/revocation/1', pack({
  revoked: bob.id, issued: now, reason: 'stolen on the train — lückenlos', successor: alice.id
}), bob)

// three models of Bob's own, whose cards share a signature
const three = [0, 1, 2].map((number) =>
  sealOffer({ name: `bob/model-${number}`, task: 'text-generation' }, bob, { network: 'public', now }))
const [first, second, third] = sealCards(three, bob)
const [only] = sealCards(three.slice(0, 1), bob)

const key = keyOf('public', 'model/acme/sentiment')
const address = Buffer.from('047f000001060fa1', 'hex')

const together = { card_1_of_1: only, card_1_of_3: first, card_2_of_3: second, card_3_of_3: third }
const cards = { card, card_summed_up: summedUp, ...together }
const sealed = { manifest, offer, ...cards, tombstone, revocation }
const hex = { ...sealed, add_provider: addProvider(key, bob.id, [address], offer) }
const shown = Object.fromEntries(Object.entries(hex).map(([what, data]) => [what, data.toString('hex')]))
console.log(JSON.stringify({ made_by: 'tests/interop/make_vector.mjs', now_us: now, key: key.toString('hex'), ...shown }, null, 2))
