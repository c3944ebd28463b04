#!/usr/bin/env node
// Talks to a running server with node's `ws`; exits 0 only if every check holds.
//
//     node ws_client.js URL [--deflate]
//
// URL is ws://HOST:PORT or wss://HOST:PORT without a path. --deflate offers permessage-deflate and requires it.
// Every wait has a deadline, and no deadline is part of what is checked: it only ends a hung run.
import { Buffer } from 'node:buffer';
import { once } from 'node:events';
import process from 'node:process';
import WebSocket from 'ws';

const [url, ...flags] = process.argv.slice(2);
if (!/^wss?:\/\//.test(url ?? '') || flags.some((flag) => flag !== '--deflate')) {
  console.error('usage: node ws_client.js ws[s]://HOST:PORT [--deflate]');
  process.exit(2);
}
const deflate = flags.includes('--deflate');

const MIB = 1 << 20;
// Each border of the payload length's three forms (RFC 6455 §5.2), and lengths that need many reads.
const LENGTHS = [0, 1, 125, 126, 127, 65535, 65536, MIB, 16 * MIB];
// What the server refuses by default, from the header alone: --message-size-max is 32 MiB.
const TOO_LONG = 32 * MIB + 1;
const CHECK_DEADLINE_MS = 120_000;

/** An open connection with a queue of what arrives: `await next()` is {data: Buffer, isText}. */
async function open(path = '/echo') {
  const ws = new WebSocket(url + path, { perMessageDeflate: deflate, maxPayload: 0, handshakeTimeout: 30_000 });
  const arrived = [];
  const waiting = [];
  const closed = new Promise((resolve) => ws.on('close', (code, reason) => resolve({ code, reason: String(reason) })));
  ws.on('message', (data, isBinary) => {
    const message = { data, isText: !isBinary };
    const waiter = waiting.shift();
    if (waiter) waiter.resolve(message);
    else arrived.push(message);
  });
  closed.then(({ code }) => waiting.forEach((waiter) => waiter.reject(new Error(`closed with ${code} while a message was due`))));
  const next = () =>
    new Promise((resolve, reject) => {
      if (arrived.length) resolve(arrived.shift());
      else if (ws.readyState === WebSocket.CLOSED) reject(new Error('closed while a message was due'));
      else waiting.push({ resolve, reject });
    });
  await once(ws, 'open'); // rejects on 'error'
  ws.on('error', () => {}); // from here on an error is followed by 'close', which the waits see
  return { ws, next, closed, arrived };
}

async function close(...connections) {
  for (const { ws } of connections) ws.close(1000);
  for (const { closed } of connections) equal((await closed).code, 1000, 'status code of the close reply');
}

function equal(got, want, what) {
  if (!Object.is(got, want)) throw new Error(`${what}: got ${got}, expected ${want}`);
}

function sameMessage({ data, isText }, want, what) {
  equal(isText, typeof want === 'string', `${what}: whether it is text`);
  const octets = Buffer.from(want);
  equal(data.length, octets.length, `${what}: octets`);
  const at = data.equals(octets) ? -1 : octets.findIndex((octet, index) => octet !== data[index]);
  equal(at, -1, `${what}: first octet that differs`);
}

function binary(length, seed = 1) {
  const data = Buffer.alloc(length);
  let state = seed;
  for (let index = 0; index < length; index++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    data[index] = state >>> 24;
  }
  return data;
}

/** Text of exactly so many octets of UTF-8, with characters of one to four of them at every alignment. */
function text(length) {
  const pattern = 'aß€𝄞z';
  const octets = Buffer.byteLength(pattern);
  return pattern.repeat(Math.floor(length / octets)) + 'x'.repeat(length % octets);
}

const CHECKS = {
  async 'every length comes back as text and binary'() {
    const connection = await open();
    equal(connection.ws.extensions, deflate ? 'permessage-deflate' : '', 'extensions agreed');
    for (const length of LENGTHS) {
      for (const message of [binary(length), text(length)]) {
        connection.ws.send(message);
        sameMessage(await connection.next(), message, `message of ${length} octets`);
      }
    }
    await close(connection);
  },

  async 'pipelined small messages keep their order'() {
    const count = 20_000;
    const connection = await open();
    const message = (index) => (index % 2 ? `${index}` : Buffer.from(`${index}`));
    for (let index = 0; index < count; index++) connection.ws.send(message(index));
    for (let index = 0; index < count; index++) sameMessage(await connection.next(), message(index), `message ${index}`);
    await close(connection);
  },

  async 'replies owed at the close arrive before it'() {
    const connection = await open();
    for (let index = 0; index < 500; index++) connection.ws.send(`${index}`);
    await close(connection);
    equal(connection.arrived.length, 500, 'echoes before the Close');
    connection.arrived.forEach((message, index) => sameMessage(message, `${index}`, `message ${index}`));
  },

  async 'fragments come back as one message, with pings between them'() {
    const connection = await open();
    for (const parts of [['one', '', 'two', ''], ['', 'late'], ['', ''], [1, 125, 126, 65535, 65536, 0, MIB].map((n) => text(n))]) {
      for (const asText of [true, false]) {
        for (const [index, part] of parts.entries()) {
          connection.ws.send(Buffer.from(part), { binary: !asText, fin: index === parts.length - 1 });
          if (index < parts.length - 1) {
            connection.ws.ping(`between ${index}`);
            const [data] = await once(connection.ws, 'pong');
            equal(String(data), `between ${index}`, 'data of the pong');
          }
        }
        const whole = parts.join('');
        sameMessage(await connection.next(), asText ? whole : Buffer.from(whole), `${parts.length} fragments`);
      }
    }
    await close(connection);
  },

  async 'pongs carry the data of their pings'() {
    const connection = await open();
    for (const data of [Buffer.alloc(0), Buffer.from('x'), binary(125)]) {
      connection.ws.ping(data);
      const [got] = await once(connection.ws, 'pong');
      equal(got.compare(data), 0, 'data of the pong compared');
    }
    await close(connection);
  },

  async 'close replies echo the status code'() {
    for (const [code, reason] of [[1000, ''], [1000, 'bye'], [1003, ''], [1011, 'ü'.repeat(61)], [3000, ''], [4999, 'x'.repeat(123)]]) {
      const connection = await open();
      connection.ws.close(code, reason);
      equal((await connection.closed).code, code, 'status code of the close reply');
    }
    const silent = await open();
    silent.ws.close();
    equal((await silent.closed).code, 1005, 'status code after a Close without one (RFC 6455 §7.1.5)');
  },

  async 'invalid UTF-8 is answered with 1007'() {
    const connection = await open();
    connection.ws.send(Buffer.from([0x61, 0xc0, 0xaf]), { binary: false });
    equal((await connection.closed).code, 1007, "status code of the server's Close");
  },

  async 'a message beyond the limit is answered with 1009'() {
    const connection = await open();
    connection.ws.send(Buffer.alloc(TOO_LONG), () => {}); // overtaken by the Close, so it may fail
    equal((await connection.closed).code, 1009, "status code of the server's Close");
  },

  async 'every member gets every message once and in its publishers order'() {
    const [memberCount, publisherCount, messageCount] = [32, 4, 250];
    const members = await Promise.all(Array.from({ length: memberCount }, () => open('/broadcast/node')));
    for (let index = 0; index < messageCount; index++) {
      for (let publisher = 0; publisher < publisherCount; publisher++) {
        const message = `${publisher} ${index}`;
        members[publisher].ws.send(index % 2 ? message : Buffer.from(message));
      }
    }
    for (const member of members) {
      const nextIndex = Array(publisherCount).fill(0);
      for (let count = 0; count < publisherCount * messageCount; count++) {
        const { data, isText } = await member.next();
        const [publisher, index] = String(data).split(' ').map(Number);
        equal(index, nextIndex[publisher], `next message of publisher ${publisher}`);
        equal(isText, index % 2 === 1, 'whether it is text');
        nextIndex[publisher]++;
      }
    }
    members.at(-1).ws.send('end'); // exactly once: what comes next is the next message, not a second copy
    for (const member of members) sameMessage(await member.next(), 'end', 'the message after the last');
    await close(...members);
  },

  async 'broadcast keeps every length'() {
    const members = await Promise.all(Array.from({ length: 6 }, () => open('/broadcast/node-lengths')));
    for (const length of LENGTHS.filter((length) => length <= MIB)) {
      for (const message of [binary(length), text(length)]) {
        members[0].ws.send(message);
        for (const member of members) sameMessage(await member.next(), message, `message of ${length} octets`);
      }
    }
    await close(...members);
  },
};

let failed = 0;
for (const [name, check] of Object.entries(CHECKS)) {
  let timer;
  const deadline = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${CHECK_DEADLINE_MS} ms`)), CHECK_DEADLINE_MS);
  });
  try {
    await Promise.race([check(), deadline]);
    console.log(`ok      ${name}`);
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}: ${error.message}`);
  } finally {
    clearTimeout(timer);
  }
}
const count = Object.keys(CHECKS).length;
console.log(`ws: ${count - failed} of ${count} checks passed`);
process.exit(failed ? 1 : 0); // sockets of a failed check must not keep the process
