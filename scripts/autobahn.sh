#!/usr/bin/env bash
# Runs the real Autobahn testsuite against the release binary and holds it to scripts/autobahn/expected.txt:
# every case OK, none NON-STRICT; only 7.1.6, 7.13.1 and 7.13.2 are INFORMATIONAL, by the suite's definition.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

ALL_CASES=('*')

usage() {
    cat <<EOF
usage: scripts/autobahn.sh [FLAG...]
  --io NAME       the server's --io: auto, epoll or uring (default epoll)
  --workers N     the server's --workers (default 2)
  --tls           over wss, with --tls-self-signed (the suite's client does not verify certificates)
  --cases LIST    patterns separated by commas or spaces: '1.*,6.4.*,7.1.6' (default: all 517, in 2 to 12 minutes; without 12 and 13 it is 1)
  --parallel N    clients of the suite side by side (default: twice the number of cores; they mostly wait)
  --bin PATH      a server binary that is built already
  --out DIR       where the reports go (default target/autobahn/IO, with --tls IO-tls); what is there is replaced
Exit status: 0 when every case ended as expected, 1 otherwise.
EOF
}

io=epoll workers=2 tls='' out='' parallel=$((2 * $(nproc))) cases=("${ALL_CASES[@]}")
((parallel >= 4)) || parallel=4
while (($#)); do
    case $1 in
    --help | -h)
        usage
        exit 0
        ;;
    --tls) tls=-tls LISTEN_SCHEME=wss ;;
    --io | --workers | --cases | --parallel | --bin | --out)
        [[ -n ${2:-} ]] || die "$1 needs a value (see --help)"
        case $1 in
        --io) io=$2 ;;
        --workers) workers=$2 ;;
        --cases) read -ra cases <<<"${2//,/ }" ;;
        --parallel) parallel=$2 ;;
        --bin) RESOUND=$2 ;;
        --out) out=$2 ;;
        esac
        shift
        ;;
    *) die "unknown argument '$1' (see --help)" ;;
    esac
    shift
done
out=${out:-$REPO/target/autobahn/$io$tls}
suite=$REPO/scripts/autobahn

install_suite() {
    need_venv
    # The hashes are those of the wheels for CPython 3.11 on x86-64; elsewhere the versions alone are pinned.
    if [[ $("$VENV/bin/python" -c 'import platform as p; print(p.python_version()[:4], p.machine())') == '3.11 x86_64' ]]; then
        need_python autobahn --no-deps --require-hashes -r "$suite/lock-hashed.txt"
    else
        local pins=$VENV/autobahn-pins.txt
        sed 's/ *--hash=.*//' "$suite/lock-hashed.txt" >"$pins"
        need_python autobahn --no-deps -r "$pins"
    fi
}

clients=()
# shellcheck disable=SC2329 # called by the trap
clean_up() {
    local pid
    for pid in "${clients[@]}"; do kill "$pid" 2>/dev/null || true; done
    server_stop || true
}
trap clean_up EXIT

install_suite
need_resound
# Only what an earlier run of this script left here is removed.
mkdir -p "$out"
rm -rf "$out"/shard-* "$out"/report "$out"/*.log "$out"/spec-*.json
server_start "$out/server.log" --io "$io" --workers "$workers" --deflate on ${tls:+--tls-self-signed}
say "$RESOUND --io $io --workers $workers --deflate on at $SERVER_URL"
"$VENV/bin/python" "$suite/suite.py" plan "$out" "$SERVER_URL" "$parallel" "${cases[@]}"

# Well above what a server that answers needs, and below what would stall CI: one that accepts and stays silent
# costs the suite 5 s and more a case. The sections on compression take minutes by themselves.
limit=300
if [[ " ${cases[*]}" =~ \ (\*|1[23]\.) ]]; then limit=1100; fi
shard=0
for spec in "$out"/spec-*.json; do
    timeout "$limit" "$VENV/bin/python" "$suite/wstest3.py" -u 0 -m fuzzingclient -s "$spec" >"$out/wstest-$shard.log" 2>&1 &
    clients+=($!)
    shard=$((shard + 1))
done
status=0
for shard in "${!clients[@]}"; do
    ended=0
    wait "${clients[$shard]}" || ended=$?
    if ((ended == 124)); then
        say "the suite's client $shard was stopped after $limit s; its cases count as not run"
        status=1
    elif ((ended)); then
        say "the suite's client $shard exited with $ended:"
        tail -n 5 "$out/wstest-$shard.log"
        status=1
    fi
done
clients=()
"$VENV/bin/python" "$suite/suite.py" judge "$out" "${cases[@]}" | tee "$out/verdict.txt" || status=1
note "--io $io${tls:+ --tls}: $(tail -n 1 "$out/verdict.txt")"
ended=0
server_stop || ended=$?
if ((ended)); then
    say "the server exited with $ended after SIGTERM, expected 0; its log: $SERVER_LOG"
    status=1
fi
exit "$status"
