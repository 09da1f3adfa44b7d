// What both programs of this folder are made of: a js-libp2p node, and its streams read and written.
Promise.withResolvers ??= function () { // node 22 has it; js-libp2p expects it
  let resolve, reject
  const promise = new Promise((a, b) => { resolve = a; reject = b })
  return { promise, resolve, reject }
}

const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')

export const say = (event, fields = {}) => console.log(JSON.stringify({ event, ...fields }))

export async function readAll (stream) {
  const parts = []
  for await (const part of stream) parts.push(Buffer.from(part.subarray()))
  return Buffer.concat(parts)
}

export { write } from './modelnet.mjs'

// js-libp2p lets 1,000 streams in by default, identify among them
export const MANY = { maxInboundStreams: 2000, maxOutboundStreams: 2000 }

export async function makeNode (listens, more = {}) {
  return await createLibp2p({
    ...more,
    addresses: { listen: listens ? ['/ip4/127.0.0.1/tcp/0'] : [] },
    transports: [tcp()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux(MANY)],
    services: { identify: identify(), ping: ping(), ...more.services }
  })
}
