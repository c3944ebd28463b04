// Compression between resound and node's `ws` (npm install ws).
//
// Usage: node deflate_ws.mjs ws://HOST:PORT
//
// The server is one with --deflate on. Every message must come back as it was sent.
import { createRequire } from "node:module";
import { randomBytes } from "node:crypto";
import assert from "node:assert";

// From where it is run, so that `npm install` may be done anywhere.
const WebSocket = createRequire(process.cwd() + "/")("ws");
const url = process.argv[2].replace(/\/$/, "");
const text = JSON.stringify(Array.from({ length: 20000 }, (_, i) => ({ id: i, name: `user${i % 97}` })));
const messages = ["", "x", "héllo ".repeat(100), "héllo ".repeat(100), randomBytes(1000), randomBytes(200000),
  Buffer.alloc(3000000), text, "", "the end"];
const offers = [
  {}, { serverMaxWindowBits: 9 }, { clientMaxWindowBits: 9 }, { serverNoContextTakeover: true },
  { clientNoContextTakeover: true }, { serverMaxWindowBits: 12, clientMaxWindowBits: 11 },
];

function echo(options) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url + "/echo", { perMessageDeflate: { threshold: 0, ...options } });
    let count = 0;
    socket.on("error", reject);
    socket.on("close", (code) => (code === 1000 ? resolve() : reject(new Error(`closed with ${code}`))));
    socket.on("open", () => {
      assert.match(socket.extensions, /permessage-deflate/);
      messages.forEach((message) => socket.send(message));
    });
    socket.on("message", (data, isBinary) => {
      const sent = messages[count++];
      assert.strictEqual(isBinary, typeof sent !== "string");
      assert.ok(data.equals(Buffer.from(sent)), `message ${count} changed`);
      if (count === messages.length) socket.close(1000);
    });
  });
}

for (const options of offers) await echo(options);
console.log(`ws ${createRequire(process.cwd() + "/")("ws/package.json").version}: ${offers.length} offers: ok`);
