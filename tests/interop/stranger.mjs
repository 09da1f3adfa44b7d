// A js-libp2p peer that serves and asks what tests/support/stock/host.py does; see there for what that is.
//   node stranger.mjs listen              print our address, serve until stdin closes
//   node stranger.mjs dial ADDR MANY      the whole story with ADDR, MANY streams of it at once
//   node stranger.mjs idle ADDR SECONDS   open a stream, be still for so long, use it again
import { createHash } from 'node:crypto'
import { MANY, makeNode, readAll, say, write } from './common.mjs'
import { multiaddr } from '@multiformats/multiaddr'

const SIZE = 10_000_000
const GIVE_UP_AT = 100_000
const [mode, address, amount] = process.argv.slice(2)
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const sha256 = bytes => createHash('sha256').update(bytes).digest('hex')
const pattern = size => Buffer.alloc(size, Buffer.from(Array.from({ length: 251 }, (_, i) => i)))
const note = i => Buffer.from(String(i).padStart(6, '0'))

// A reader of the first bytes of a stream, and of the rest and how it ends.
function reader (stream) {
  const parts = stream[Symbol.asyncIterator]()
  let kept = Buffer.alloc(0)
  const more = async () => {
    const { value, done } = await parts.next()
    if (done) throw Object.assign(new Error('it ended'), { name: 'Ended' })
    kept = Buffer.concat([kept, value.subarray()])
  }
  return {
    async exactly (size) {
      while (kept.length < size) await more()
      const found = kept.subarray(0, size)
      kept = kept.subarray(size)
      return found
    },
    async rest () {
      const found = [kept]
      kept = Buffer.alloc(0)
      try {
        for (;;) {
          await more()
          found.push(kept)
          kept = Buffer.alloc(0)
        }
      } catch (error) {
        const how = { Ended: 'end', StreamResetError: 'reset' }[error.name] ?? error.name
        return { data: Buffer.concat(found), how }
      }
    }
  }
}

// --- what it serves

const handlers = {
  async echo (stream) {
    for await (const part of stream) await write(stream, part.subarray())
    await stream.close()
  },
  async digest (stream) {
    await write(stream, Buffer.from(sha256(await readAll(stream))))
    await stream.close()
  },
  async source (stream) {
    const from = reader(stream)
    await write(stream, pattern(Number((await from.exactly(8)).readBigUInt64BE())))
    await stream.close() // our side of it
    const { data, how } = await from.rest()
    say('after-the-end', { bytes: data.length, how })
  },
  async 'gives-up' (stream) {
    await reader(stream).exactly(GIVE_UP_AT)
    stream.abort(new Error('enough'))
  },
  async listens (stream) {
    await write(stream, Buffer.from('!'))
    const { data, how } = await reader(stream).rest()
    say('fate', { how, bytes: data.length })
  },
  async 'calls-back' (stream, connection) {
    const back = await connection.newStream('/wire/echo', MANY)
    await write(back, Buffer.from('it is me'))
    await write(stream, await reader(back).exactly(8))
    await back.close()
    await stream.close()
  }
}

const node = await makeNode(mode === 'listen')
for (const [name, handler] of Object.entries(handlers)) {
  await node.handle(`/wire/${name}`, async (stream, connection) => {
    try {
      await handler(stream, connection)
    } catch (error) {
      say('handler-failed', { name, error: String(error) })
      stream.abort(error)
    }
  }, MANY)
}

// --- what it asks

async function story (open, many) {
  const up = await open('digest')
  await write(up, pattern(SIZE))
  const answer = reader(up)
  await up.close()
  const { data, how } = await answer.rest()
  say('upload', { equal: data.toString() === sha256(pattern(SIZE)), how })

  const down = await open('source')
  const count = Buffer.alloc(8)
  count.writeBigUInt64BE(BigInt(SIZE))
  await write(down, count)
  const got = await reader(down).rest()
  await write(down, Buffer.from('thanks'))
  await down.close()
  say('download', { equal: got.data.equals(pattern(SIZE)), how: got.how })

  const doomed = await open('gives-up')
  const fate = reader(doomed).rest()
  try { await write(doomed, pattern(SIZE)) } catch { /* its fate says why */ }
  say('is-reset', { how: (await fate).how })

  const regretted = await open('listens')
  await write(regretted, pattern(GIVE_UP_AT))
  await reader(regretted).exactly(1)
  regretted.abort(new Error('enough'))
  say('resets')

  const streams = []
  for (let i = 0; i < many; i++) streams.push(await open('echo'))
  const readers = streams.map(reader)
  await Promise.all(streams.map((stream, i) => write(stream, note(i))))
  let good = 0
  for (const [i, from] of readers.entries()) good += (await from.exactly(6)).equals(note(i))
  await Promise.all(streams.map(stream => stream.close()))
  say('many', { open: many, good })
}

async function idle (open, seconds) {
  const stream = await open('echo')
  const from = reader(stream)
  await write(stream, Buffer.from('before'))
  await from.exactly(6)
  await sleep(1000 * seconds)
  await write(stream, Buffer.from('after!'))
  say('used', { equal: (await from.exactly(6)).toString() === 'after!' })
  await stream.close()
}

process.stdin.on('end', () => process.exit(0)).resume()
if (mode === 'listen') {
  say('listening', { addr: node.getMultiaddrs()[0].toString() })
} else {
  const connection = await node.dial(multiaddr(address))
  say('connected')
  const open = name => connection.newStream(`/wire/${name}`, MANY)
  await (mode === 'dial' ? story(open, Number(amount)) : idle(open, Number(amount)))
  say('done')
}
