#!/bin/sh
# What peers that misbehave do to the server, and to peers that behave. Prints Markdown; docs/limits.md has it.
#
#   scripts/abuse.sh                     both tables, every row (about half an hour)
#   scripts/abuse.sh --quick             the rows that decide about latency, and all about memory at once
#   scripts/abuse.sh latency [ARGS...]   how long replies take beside attackers: --quick, --only NAME, --check, …
#   scripts/abuse.sh memory [ARGS...]    what the server's memory becomes: --all-at-once, --limit OCTETS, …
#
# Both take --io epoll|uring, and flags for the server after --, for example
#
#   scripts/abuse.sh memory --all-at-once --limit 1181116006 -- --memory-bytes-max 1073741824
#
# It starts the servers that it attacks, on free ports of loopback, and touches nothing else. The server has core
# $SERVER_CORE (0), the attackers and the peer that behaves have core $CLIENT_CORE (1), where the attackers give
# way. The first row has no attack: it is what the instrument itself adds. `memory` takes up to half of the memory
# that is free and then kills the server (--guard); a limit needs root (a memory cgroup) or prlimit.
# $RESOUND names another server to attack than this checkout's release binary.
set -eu
cd "$(dirname "$0")/.."

if [ -n "${RESOUND:-}" ]; then
    cargo build --release --example abuse >&2
else
    cargo build --release --bin resound --example abuse >&2
    RESOUND=target/release/resound
fi
echo "$(uname -sr), $(nproc) processors, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo
abuse() {
    task=$1
    shift
    target/release/examples/abuse "$task" --resound "$RESOUND" \
        --server-core "${SERVER_CORE:-0}" --client-core "${CLIENT_CORE:-1}" "$@"
}

case "${1:-}" in
'')
    abuse latency
    echo
    abuse memory
    echo
    abuse memory --all-at-once
    ;;
--quick)
    abuse latency --quick
    echo
    abuse memory --all-at-once
    ;;
latency | memory) abuse "$@" ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
