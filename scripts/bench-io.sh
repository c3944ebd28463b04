#!/bin/sh
# What epoll and io_uring cost: server processor time for each message, system calls, context switches.
#
#   scripts/bench-io.sh           every workload (a quarter of an hour; on a machine that does nothing else)
#   scripts/bench-io.sh --quick   the ones that decide, less exactly (about two minutes)
#   scripts/bench-io.sh wakes     what waking another worker's ring costs: eventfd against msg_ring
#   scripts/bench-io.sh --quick --before PATH
#                                 the same beside another build of resound: what a change costs
#   scripts/bench-io.sh ARGS...   one run with ARGS, for example
#                                 --servers raw-epoll,raw-uring --workloads 50/20/1 --repetitions 11
#
# The server has core $SERVER_CORE (0) and the generator $CLIENT_CORE (1) to itself. All servers of a workload
# run side by side and are measured in turn, there and back, and every ratio is taken within one turn. System
# calls are counted by perf in a run of their own; without it, or without its right to
# (kernel.perf_event_paranoid), the column says so. Prints Markdown: a table of costs, then one of ratios, each
# with the 95 % interval of its median and its spread.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --bin resound --example bench-io >&2
echo "$(uname -sr), $(nproc) processors, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)"
echo
run() {
    target/release/examples/bench-io run --resound target/release/resound \
        --server-core "${SERVER_CORE:-0}" --client-core "${CLIENT_CORE:-1}" "$@"
}

case "${1:-}" in
'')
    run --workloads 1/20/1,50/20/1,500/20/1,2000/20/1,1/20/16,50/20/16,500/20/16,2000/20/16
    run --workloads 1/16384/1,50/16384/1,500/16384/1,2000/16384/1,1/16384/16,50/16384/16,500/16384/16
    # Half a gigabyte in flight: it takes seconds to begin and to end.
    run --workloads 2000/16384/16 --repetitions 7
    run --workloads b1000/64/1,b1000/1024/1,b1000/64/10,b1000/1024/10
    ;;
--quick)
    shift
    run --repetitions 9 --workloads 1/20/1,50/20/1,500/20/1,50/20/16,500/16384/1,b1000/64/1,b1000/1024/10 "$@"
    ;;
wakes) target/release/examples/bench-io wakes --cores "${SERVER_CORE:-0},${CLIENT_CORE:-1}" ;;
*) run "$@" ;;
esac
