#!/usr/bin/env bash
# Real clients against the release binary: Python's websockets, node's ws, and a headless Chromium; echo and
# broadcast, text and binary, 0 octets to 16 MiB. With --tls the same over wss, and what openssl and curl see of
# it. The checks themselves are in tests/clients.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

usage() {
    cat <<EOF
usage: scripts/clients.sh [FLAG...] [CLIENT...]
  CLIENT: python, node, browser; with --tls also tools (openssl and curl), client-ca (the same, and a server that
  requires client certificates). Default: all.
  --io NAME       the server's --io: auto, epoll or uring (default epoll)
  --workers N     the server's --workers (default 2, so that rooms span workers)
  --deflate       offer permessage-deflate, and require it
  --tls           over wss, with certificates made for this run; every client verifies the server's
  --bin PATH      a server binary that is built already
Exit status: 0 when every check of every client holds, 1 otherwise.
EOF
}

io=epoll workers=2 deflate=() server=() chosen=() tls=''
while (($#)); do
    case $1 in
    --deflate) deflate=(--deflate) server+=(--deflate on) ;;
    --tls) tls=-tls LISTEN_SCHEME=wss ;;
    --help | -h)
        usage
        exit 0
        ;;
    --io | --workers | --bin)
        [[ -n ${2:-} ]] || die "$1 needs a value (see --help)"
        case $1 in
        --io) io=$2 ;;
        --workers) workers=$2 ;;
        --bin) RESOUND=$2 ;;
        esac
        shift
        ;;
    python | node | browser | tools | client-ca) chosen+=("$1") ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
((${#chosen[@]})) || chosen=(python node browser ${tls:+tools client-ca})
[[ -n $tls || ! " ${chosen[*]} " =~ \ (tools|client-ca)\  ]] || die "tools and client-ca are for --tls"
clients=$REPO/tests/clients
logs=$REPO/target/clients
certificates=$logs/certificates-$io

# With --deflate also what only these clients can ask for: every offer, a room of all windows, a bomb.
with_python() {
    if ((${#deflate[@]})); then
        "$VENV/bin/python" "$clients/deflate_websockets.py" "$SERVER_URL" || return 1
    fi
    "$VENV/bin/python" "$clients/websockets_client.py" "$SERVER_URL" "${deflate[@]}" \
        --subprotocol chat.v1 --subprotocol chat.v2 --terminate "$SERVER_PID"
}

with_node() {
    if ((${#deflate[@]})); then
        (cd "$clients" && "${NODE[@]}" deflate_ws.mjs "$SERVER_URL") || return 1
    fi
    "${NODE[@]}" "$clients/ws_client.js" "$SERVER_URL" "${deflate[@]}"
}

with_browser() {
    python3 "$clients/browser.py" "$CHROMIUM" "$SERVER_URL" "${deflate[@]}" ${tls:+--trust "$certificates/server.pem"}
}

with_tools() {
    python3 "$clients/tls_tools.py" "$SERVER_URL" "$certificates"
}

# The same tools, and a server that wants to see certificates.
with_client-ca() {
    python3 "$clients/tls_tools.py" "$SERVER_URL" "$certificates" --client-ca
}

# Everything is installed before the first server starts.
prepare() {
    case $1 in
    python) need_python websockets -r "$clients/requirements.txt" ;;
    node)
        need_node
        if ! cmp -s "$clients/package-lock.json" "$clients/node_modules/installed"; then
            say "installing ws into tests/clients/node_modules"
            (cd "$clients" && "${NPM[@]}" ci --silent --no-audit --no-fund) || die "npm could not install ws"
            cp "$clients/package-lock.json" "$clients/node_modules/installed"
        fi
        ;;
    browser) need_chromium ;;
    tools | client-ca)
        need_command openssl openssl
        need_command curl curl
        ;;
    esac
}

trap 'server_stop || true' EXIT
mkdir -p "$logs"
for client in "${chosen[@]}"; do prepare "$client"; done
need_resound
if [[ -n $tls ]]; then
    make_certificates "$certificates"
    server+=(--tls-cert "$certificates/server.pem" --tls-key "$certificates/server.key")
    # Whom OpenSSL in Python, and node, trust (besides, and instead of, the system's CAs).
    export SSL_CERT_FILE=$certificates/ca.pem NODE_EXTRA_CA_CERTS=$certificates/ca.pem
fi
failed=() counted=()
for client in "${chosen[@]}"; do
    extra=()
    if [[ $client == client-ca ]]; then extra=(--tls-client-ca "$certificates/ca.pem"); fi
    server_start "$logs/$client-$io$tls.log" --io "$io" --workers "$workers" "${server[@]}" "${extra[@]}" \
        --subprotocol chat.v1 --subprotocol chat.v2
    say "$client against $SERVER_URL (--io $io --workers $workers)"
    "with_$client" 2>&1 | tee "$logs/$client-$io$tls.out" || failed+=("$client")
    counted+=("$(tail -n 1 "$logs/$client-$io$tls.out")")
    ended=0
    server_stop || ended=$?
    if ((ended)); then
        say "FAILED  the server exited with $ended after SIGTERM, expected 0; its log: $SERVER_LOG"
        failed+=("the server's exit after $client")
    fi
done
note "--io $io${tls:+ --tls}: $(printf '%s; ' "${counted[@]}" | sed 's/; $//')"
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
