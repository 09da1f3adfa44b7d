// A stock js-libp2p node with the stock kad-dht on our protocol id, as a DHT server like any other.
//   node kad.mjs NETWORK SEED ADDR...    SEED is 64 hex digits; ADDR are peers to meet first
// It prints one line of JSON when it is ready, then one for each line of JSON on stdin:
//   {"do":"table"}                       who is in its routing table
//   {"do":"find","name":"model/x"}       findProviders, as anybody's js program would
//   {"do":"read","name":"model/x"}       the sealed offers behind it, each verified here (modelnet.mjs)
//   {"do":"publish","model":"x","task":"t"}    an offer and a card of its own, stored with peers of ours
import { createInterface } from 'node:readline'
import { makeNode, say, write } from './common.mjs'
import {
  addProvider, getProviders, keyOf, keyPair, openOffer, pack, parseMessage, readUvarint, seal, sealOffer, sha256,
  summary
} from './modelnet.mjs'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { multiaddr } from '@multiformats/multiaddr'
import { base58btc } from 'multiformats/bases/base58'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

const [network, seed, ...bootstraps] = process.argv.slice(2)
const protocol = network === 'public'
  ? '/modelnet/kad/1.0.0'
  : `/modelnet/${sha256(network).subarray(0, 8).toString('hex')}/kad/1.0.0`
const key = keyPair(Buffer.from(seed, 'hex'))
const node = await makeNode(true, {
  privateKey: await generateKeyPairFromSeed('Ed25519', Buffer.from(seed, 'hex')),
  services: { dht: kadDHT({ protocol, clientMode: false, peerInfoMapper: passthroughMapper }) }
})
const text = (id) => base58btc.encode(id).slice(1)

// One request on a stream of its own, and its reply; a stock peer does not answer ADD_PROVIDER.
async function ask (peer, request) {
  const stream = await node.dialProtocol(peer, protocol, { signal: AbortSignal.timeout(5000) })
  const patience = setTimeout(() => stream.abort(new Error('no reply')), 1000)
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
    clearTimeout(patience)
  }
}

// Where the first message in these bytes lies, once all of its length is there.
function ending (bytes) {
  if (bytes.subarray(0, 3).every((byte) => byte >= 0x80)) return null
  const { number, at } = readUvarint(bytes)
  return { from: at, to: at + number }
}

async function closest (key) {
  const found = []
  for await (const event of node.services.dht.getClosestPeers(key)) {
    if (event.name === 'FINAL_PEER') found.push(event.peer.id)
  }
  return found
}

// Each closest peer's answer; those that fail are left out.
async function askClosest (key, request) {
  const replies = await Promise.all((await closest(key)).map((peer) => ask(peer, request).catch(() => null)))
  return replies.filter((reply) => reply !== null)
}

const actions = {
  async table () {
    const peers = []
    for (const { peerId } of node.services.dht.routingTable.kb.toIterable()) peers.push(peerId.toString())
    return { peers }
  },

  async find ({ name }) {
    const cid = CID.createV1(0x55, Digest.decode(keyOf(network, name)))
    const providers = {}
    for await (const event of node.services.dht.findProviders(cid)) {
      for (const { id, multiaddrs } of event.providers ?? []) {
        providers[id.toString()] = multiaddrs.map(String)
      }
    }
    return { providers }
  },

  async read ({ name }) {
    const key = keyOf(network, name)
    const offers = {}
    const refused = []
    for (const { records = [] } of await askClosest(key, getProviders(key))) {
      for (const sealed of records) {
        try {
          const offer = openOffer(sealed, { network })
          offers[text(offer.provider)] = { model: offer.manifest.name, task: offer.manifest.task, seq: offer.seq }
        } catch (error) {
          refused.push(error.message)
        }
      }
    }
    return { offers, refused }
  },

  async publish ({ model, task }) {
    const sealed = sealOffer({ name: model, task }, key, { network, framework: 'js' })
    const offer = openOffer(sealed, { network })
    const card = seal('/modelnet/card/1', pack({
      ...summary(sealed, offer),
      ...{ p: key.id, n: network, o: key.id, m: model, t: task, f: 'js' },
      ...{ s: offer.seq, e: offer.expires, h: sha256(sealed) }
    }), key)
    const addresses = node.getMultiaddrs().map((address) => Buffer.from(address.decapsulateCode(421).bytes))
    const places = { [`model/${model}`]: sealed, [`peer/${text(key.id)}`]: sealed, [`task/${task}`]: card }
    const stored = {}
    await Promise.all(Object.entries(places).map(async ([name, record]) => {
      const place = keyOf(network, name)
      const replies = await askClosest(place, addProvider(place, key.id, addresses, record))
      stored[name] = replies.filter((reply) => reply.records !== undefined && !reply.refused).length
    }))
    return { stored }
  }
}

for (const address of bootstraps) await node.dial(multiaddr(address))
say('ready', { addr: node.getMultiaddrs()[0].toString(), peer: node.peerId.toString() })
for await (const line of createInterface({ input: process.stdin })) {
  const { do: what, ...wanted } = JSON.parse(line)
  try {
    say(what, await actions[what](wanted))
  } catch (error) {
    say('failed', { what, error: error.stack })
  }
}
process.exit(0)
