// A js-libp2p peer that does one thing, prints one line of JSON for each result, and ends.
//   node peer.mjs dial ADDR      dial ADDR, identify, ping, echo, end, reset
//   node peer.mjs listen         print our address, answer pings and echo until stdin closes
import { makeNode, readAll, say, write } from './common.mjs'
import { multiaddr } from '@multiformats/multiaddr'

const ECHO = '/modelnet/echo/1.0.0'

const node = await makeNode(process.argv[2] === 'listen')

async function dial (address) {
  const identified = new Promise(resolve => node.addEventListener('peer:identify', e => resolve(e.detail)))
  const connection = await node.dial(multiaddr(address))
  say('connected', { encryption: connection.encryption, muxer: connection.multiplexer })
  const told = await identified
  say('identified', {
    agent: told.agentVersion, protocols: told.protocols, addrs: told.listenAddrs.map(String)
  })
  say('ping', { ms: await node.services.ping.ping(multiaddr(address)) })

  const bytes = Buffer.alloc(700000, 'modelnet')
  const echo = await connection.newStream(ECHO)
  const back = readAll(echo)
  await write(echo, bytes)
  await echo.close()
  say('echo', { equal: (await back).equals(bytes) })

  try {
    await connection.newStream('/nobody/speaks/this')
    say('unknown', { refused: false })
  } catch (error) {
    say('unknown', { refused: error.name === 'UnsupportedProtocolError' })
  }

  const doomed = await connection.newStream('/modelnet/gives-up/1.0.0')
  doomed.send(Buffer.from('x'))
  let reset = false
  try { await readAll(doomed) } catch (error) { reset = error.name === 'StreamResetError' }
  say('reset', { seen: reset })

  const ours = await connection.newStream('/modelnet/listens/1.0.0')
  ours.send(Buffer.from('so far'))
  await new Promise(resolve => setTimeout(resolve, 50))
  ours.abort(new Error('enough'))
  await new Promise(resolve => setTimeout(resolve, 200))
}

if (process.argv[2] === 'dial') {
  await dial(process.argv[3])
  await node.stop()
  process.exit(0)
} else {
  await node.handle(ECHO, async stream => {
    await write(stream, await readAll(stream))
    await stream.close()
  })
  say('listening', { addr: node.getMultiaddrs()[0].toString() })
  process.stdin.on('end', () => process.exit(0)).resume()
}
