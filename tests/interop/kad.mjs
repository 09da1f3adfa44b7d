// A stock js-libp2p node with the stock kad-dht on our protocol id, as a DHT server like any other.
//   node kad.mjs NETWORK SEED ADDR...    SEED is 64 hex digits; ADDR are peers to meet first
// It prints one line of JSON when it is ready, then one for each line of JSON on stdin:
//   {"do":"table"}                       who is in its routing table
//   {"do":"find","name":"model/x"}       findProviders, as anybody's js program would
//   {"do":"read","name":"model/x"}       the sealed offers behind it, each verified here (modelnet.mjs)
//   {"do":"publish","model":"x","task":"t"}    an offer and a card of its own, stored with peers of ours
import { createInterface } from 'node:readline'
import { makeNode, say } from './common.mjs'
import {
  addProvider, ask, base58, getProviders, keyOf, keyPair, openOffer, places, protocolOf, sealOffer
} from './modelnet.mjs'
import { kadDHT, passthroughMapper } from '@libp2p/kad-dht'
import { generateKeyPairFromSeed } from '@libp2p/crypto/keys'
import { multiaddr } from '@multiformats/multiaddr'
import { CID } from 'multiformats/cid'
import * as Digest from 'multiformats/hashes/digest'

const [network, seed, ...bootstraps] = process.argv.slice(2)
const protocol = protocolOf(network, 'kad')
const key = keyPair(Buffer.from(seed, 'hex'))
const node = await makeNode(true, {
  privateKey: await generateKeyPairFromSeed('Ed25519', Buffer.from(seed, 'hex')),
  services: { dht: kadDHT({ protocol, clientMode: false, peerInfoMapper: passthroughMapper }) }
})

async function request (peer, message) {
  return await ask(await node.dialProtocol(peer, protocol, { signal: AbortSignal.timeout(5000) }), message)
}

async function closest (key) {
  const found = []
  for await (const event of node.services.dht.getClosestPeers(key)) {
    if (event.name === 'FINAL_PEER') found.push(event.peer.id)
  }
  return found
}

// Each closest peer's answer; those that fail are left out.
async function askClosest (key, message) {
  const replies = await Promise.all((await closest(key)).map((peer) => request(peer, message).catch(() => null)))
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
          offers[base58(offer.provider)] = { model: offer.manifest.name, task: offer.manifest.task, seq: offer.seq }
        } catch (error) {
          refused.push(error.message)
        }
      }
    }
    return { offers, refused }
  },

  async publish ({ model, task }) {
    const sealed = sealOffer({ name: model, task }, key, { network, framework: 'js' })
    const addresses = node.getMultiaddrs().map((address) => Buffer.from(address.decapsulateCode(421).bytes))
    const stored = {}
    await Promise.all(places(sealed, key).map(async ([name, record]) => {
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
