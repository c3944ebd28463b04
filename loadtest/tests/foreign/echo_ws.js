// An echo and broadcast server of node's ws, on a free port, which it prints. Ends when its standard input does.
const { WebSocket, WebSocketServer } = require("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
server.on("listening", () => console.log(server.address().port));
server.on("connection", (socket, request) => {
    const everyone = request.url.startsWith("/broadcast");
    socket.on("message", (data, isBinary) => {
        for (const to of everyone ? server.clients : [socket]) {
            if (to.readyState === WebSocket.OPEN) to.send(data, { binary: isBinary });
        }
    });
});
process.stdin.resume().on("end", () => process.exit(0));
