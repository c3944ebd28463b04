#!/usr/bin/env bash
# Everything that must hold, for people and for CI: `scripts/test.sh` runs all steps, `scripts/test.sh STEP…`
# some. It needs Rust (rustup's stable is enough), gcc and Python 3, and installs the rest as it goes: into
# .venv, target/tools and tests/clients/node_modules, and Debian packages when it may.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$REPO"

# Every backend that the server has; what talks to a server runs once on each.
IO_BACKENDS=(epoll uring)
# Seconds for each fuzz target. Long runs: cargo fuzz run TARGET (see fuzz/).
FUZZ_S=${FUZZ_S:-20}
# A step that hangs is ended after this long, and has failed.
STEP_S_MAX=2400
# How many steps run at a time.
LANES=${LANES:-2}
# What on_every_backend has come to.
EVERY_STATUS=0 EVERY_NOTE=''
CARGO_DENY=0.20.2
CARGO_FUZZ=0.13.2

# name|what it does, in the order they begin: the quick ones first, so that a slip is seen early, and then the long
# ones, so that no lane is left alone with one.
STEPS=(
    'fmt|formatting of the Rust sources (cargo fmt --check)'
    'scripts|the scripts themselves: shellcheck, and Python that compiles'
    'deny|licences, bans and sources of every dependency (cargo deny)'
    'clippy|clippy over every target, warnings are errors'
    'doc|the documentation builds, warnings are errors'
    'test|unit, property, simulation, integration and documentation tests, dependency rules'
    'autobahn|the Autobahn testsuite against the release binary, over ws and wss'
    'memory|unsafe code under Miri, or valgrind where there is no Miri: mask and proto'
    'fuzz|every fuzz target for a short while'
    'bench|every benchmark, run once as a test'
    'hold|scripts/hold.sh with a thousand connections: every one held, no message lost'
    'clients|Python websockets, node ws and a browser against the release binary: plain, compressed, over wss'
    'tune|the tests of scripts/tune.sh'
)

usage() {
    cat <<EOF
usage: scripts/test.sh [--fail-fast] [STEP...]        all steps without STEP; a table comes last
       scripts/test.sh --list | --help
Steps, in this order:
$(for step in "${STEPS[@]}"; do printf '  %-10s %s\n' "${step%%|*}" "${step#*|}"; done)
Environment: FUZZ_S, seconds for each fuzz target (default 20); LANES, how many steps run at a time (default 2).
What each step printed is kept in target/test-logs/STEP.log. Exit status: 0 when every step held, else 1.
EOF
}

step_fmt() {
    cargo fmt --all --check
    if [[ -f fuzz/Cargo.toml ]]; then cargo fmt --manifest-path fuzz/Cargo.toml --check; fi
    note "$(find src loadtest tests benches fuzz -name '*.rs' -not -path '*/target/*' 2>/dev/null | wc -l) files"
}

step_scripts() {
    local shell python
    need_shellcheck
    mapfile -t shell < <(grep -rlE --exclude-dir=node_modules '^#!.*\bbash|^# shellcheck shell=bash' .ci scripts tests)
    mapfile -t python < <(find scripts tests -name '*.py' -not -path '*/node_modules/*')
    "$VENV/bin/shellcheck" -x "${shell[@]}"
    "$VENV/bin/python" -c 'import ast, sys; [ast.parse(open(f).read(), f) for f in sys.argv[1:]]' "${python[@]}"
    note "${#shell[@]} shell scripts, ${#python[@]} Python files"
}

step_deny() {
    need_cargo_tool cargo-deny "$CARGO_DENY"
    # Advisories need a clone of their database from the network: scripts/test.sh works without one.
    cargo deny check --hide-inclusion-graph bans licenses sources
    note "$(cargo metadata -q --format-version 1 --all-features |
        "$VENV/bin/python" -c 'import json, sys; print(len(json.load(sys.stdin)["packages"]))') packages"
}

step_clippy() {
    cargo clippy --workspace --all-targets -- -D warnings
    note 'no warnings'
}

step_doc() {
    # With private items: these docs are read by people who change the code, and its links are checked too.
    RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items
    note 'no warnings'
}

step_test() {
    # Where these can't be installed, the tests that need them are skipped and say so. In CI they fail.
    (need_chromium) || say 'no browser: the tests of the report are skipped'
    (need_command java default-jre-headless && need_hdr_jar) || say 'no Java reader: its comparison is skipped'
    run_counted "$LOG_DIR/test.out" cargo test --workspace --no-fail-fast
}

need_hdr_jar() {
    [[ -e ${HDRHISTOGRAM_JAR:-/usr/share/java/hdrhistogram.jar} ]] ||
        need_debian "HdrHistogram's Java library" libhdrhistogram-java
}

step_bench() {
    local out=$LOG_DIR/bench.out status=0
    cargo test --workspace --bench '*' --no-fail-fast 2>&1 | tee "$out" || status=$?
    note "$(grep -c '^Success' "$out" || true) benchmarks"
    grep -q '^Success' "$out" || die 'no benchmark ran'
    return "$status"
}

step_memory() {
    local executable name skip=() status=0
    # Fewer cases than usual: either tool runs the code some tens of times slower, and what counts here is
    # that every path is taken once under its eyes.
    export PROPTEST_CASES=8
    if cargo +nightly miri --version >/dev/null 2>&1; then
        say 'Miri is at hand (rustup component miri of nightly)'
        MIRIFLAGS=-Zmiri-disable-isolation run_counted "$LOG_DIR/memory.out" \
            cargo +nightly miri test -p resound --lib mask:: proto:: || status=$?
        note "Miri: $(cat "$NOTE_FILE")"
        return "$status"
    fi
    say 'no Miri here (rustup toolchain install nightly --component miri); valgrind instead, which sees reads and'
    say 'writes outside allocations and uses of uninitialised memory, but no aliasing, and no AVX-512'
    need_command valgrind valgrind
    # These are about amounts, tens of MiB, which take valgrind minutes. The same code runs on less in the others.
    for name in inflating_stops_when_its_work_is_done no_receive_inflates_much_more what_bombs_inflate_to \
        a_message_may_inflate_to_a_mib whether_a_message_is_too_dense; do
        skip+=(--skip "$name")
    done
    executable=$(cargo test -p resound --lib --no-run --message-format=json |
        "$VENV/bin/python" -c 'import json, sys
print(*(m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")), sep="\n")')
    [[ -x $executable ]] || die "expected one test executable of the library, got '$executable'"
    run_counted "$LOG_DIR/memory.out" \
        valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite \
        "$executable" mask:: proto:: "${skip[@]}" || status=$?
    note "valgrind: $(cat "$NOTE_FILE")"
    return "$status"
}

step_fuzz() {
    local target targets runs total=0 status=0
    [[ -f fuzz/Cargo.toml ]] || die 'there is no fuzz/Cargo.toml'
    command -v g++ >/dev/null || need_debian 'a C++ compiler for libFuzzer' g++
    need_cargo_tool cargo-fuzz "$CARGO_FUZZ"
    # The sanitizer flags are unstable; this lets the compiler that everything else is built with take them, so
    # that no nightly is needed.
    export RUSTC_BOOTSTRAP=1
    mapfile -t targets < <(cargo fuzz list)
    ((${#targets[@]})) || die 'fuzz/ has no targets'
    for target in "${targets[@]}"; do
        say "fuzzing $target for $FUZZ_S s"
        cargo fuzz run "$target" -- -max_total_time="$FUZZ_S" -print_final_stats=1 -verbosity=0 2>&1 |
            tee "$LOG_DIR/fuzz-$target.out" || status=$?
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$LOG_DIR/fuzz-$target.out")
        total=$((total + ${runs:-0}))
    done
    note "${#targets[@]} targets, $total runs"
    return "$status"
}

step_tune() {
    need_shellcheck
    export PATH=$VENV/bin:$PATH
    local out=$LOG_DIR/tune.out status=0
    scripts/tune/test.sh 2>&1 | tee "$out" || status=$?
    note "$(tail -n 1 "$out")"
    return "$status"
}

step_hold() {
    local out=$LOG_DIR/hold.out
    cargo build --release --workspace
    scripts/hold.sh --connections 1000 --ramp 2000 --window 2 --time-max 60 | tee "$out"
    grep -Eq '^connections +1,000 +1,000$' "$out" || die 'not every connection was held'
    grep -Eq '^messages lost +0 +0$' "$out" || die 'messages were lost'
    note 'held 1,000 connections'
}

step_clients() {
    on_every_backend scripts/clients.sh
    on_every_backend scripts/clients.sh --deflate
    on_every_backend scripts/clients.sh --tls
    return "$EVERY_STATUS"
}

step_autobahn() {
    on_every_backend scripts/autobahn.sh
    on_every_backend scripts/autobahn.sh --tls
    return "$EVERY_STATUS"
}

# COMMAND FLAG... with --io for each backend; all their notes, and those of earlier calls in the step, become one. The
# step goes on after a failure, and fails in the end.
on_every_backend() {
    local io
    for io in "${IO_BACKENDS[@]}"; do
        : >"$NOTE_FILE"
        "$@" --io "$io" || EVERY_STATUS=$?
        EVERY_NOTE+="${EVERY_NOTE:+; }$(cat "$NOTE_FILE")"
    done
    note "$EVERY_NOTE"
}

# run_counted FILE COMMAND...: runs tests, keeps their output in FILE, and notes the sum of their counts. No
# test at all is a failure: a filter that matches nothing looks just like success otherwise.
run_counted() {
    local out=$1 status=0 counts
    shift
    "$@" 2>&1 | tee "$out" || status=$?
    counts=$(awk '/^test result:/ { passed += $4; failed += $6; ignored += $8; binaries++ }
        END { printf "%d passed, %d failed, %d ignored in %d binaries", passed, failed, ignored, binaries }' "$out")
    note "$counts"
    if [[ $counts == '0 passed'* ]]; then die 'no test ran'; fi
    return "$status"
}

# In a process of its own: there `set -e` holds, and a hung step can be ended whole.
if [[ ${1:-} == --inner ]]; then
    "step_$2"
    exit
fi

# A lane takes the next step that nobody has begun, runs it, and leaves what came of it in LOG_DIR: STEP.log what it
# printed, STEP.note its line of the table, STEP.began and STEP.ended (its status and seconds) how far it is.
lane() {
    local step began status pid=''
    trap '[[ -z $pid ]] || kill "$pid" 2>/dev/null; exit 130' TERM
    for step; do
        # Only one lane can make the folder.
        mkdir "$LOG_DIR/$step.taken" 2>/dev/null || continue
        if [[ -n $fail_fast && -e $LOG_DIR/failed ]]; then continue; fi
        began=$SECONDS status=0
        NOTE_FILE=$LOG_DIR/$step.note timeout -k 10 "$STEP_S_MAX" bash "$0" --inner "$step" \
            >"$LOG_DIR/$step.log" 2>&1 </dev/null &
        pid=$!
        echo "$pid" >"$LOG_DIR/$step.pid"
        mv "$LOG_DIR/$step.pid" "$LOG_DIR/$step.began"
        wait "$pid" || status=$?
        pid=''
        if ((status == 124)); then echo "still running after $STEP_S_MAX s, and ended" >"$LOG_DIR/$step.note"; fi
        if ((status)); then : >"$LOG_DIR/failed"; fi
        echo "$status $((SECONDS - began))" >"$LOG_DIR/$step.ended"
    done
}

# What a step prints, as it prints it; if it ended while another one was shown, all of it at once. False when it did not
# run to its end.
show() {
    local base=$LOG_DIR/$1
    while [[ ! -e $base.began ]]; do
        if [[ -z $(jobs -rp) ]]; then return 1; fi
        sleep 0.2
    done
    tail -n +1 -s 0.2 -f --pid="$(cat "$base.began")" "$base.log"
    while [[ ! -s $base.ended ]]; do
        if [[ -z $(jobs -rp) && ! -s $base.ended ]]; then return 1; fi
        sleep 0.1
    done
}

chosen=() fail_fast=''
for argument; do
    case $argument in
    --help | -h)
        usage
        exit 0
        ;;
    --list)
        printf '%s\n' "${STEPS[@]%%|*}"
        exit 0
        ;;
    --fail-fast) fail_fast=yes ;;
    *)
        printf '%s\n' "${STEPS[@]%%|*}" | grep -qxF -- "$argument" || die "no step '$argument' (see --list and --help)"
        chosen+=("$argument")
        ;;
    esac
done

need_command cargo cargo
need_command gcc gcc
need_venv
export LOG_DIR=$REPO/target/test-logs
rm -rf "$LOG_DIR"
mkdir -p "$LOG_DIR"
steps=()
for entry in "${STEPS[@]}"; do
    step=${entry%%|*}
    if ((${#chosen[@]})) && [[ " ${chosen[*]} " != *" $step "* ]]; then continue; fi
    steps+=("$step")
    : | tee "$LOG_DIR/$step.log" >"$LOG_DIR/$step.note"
done
rows=() failed=() lanes=()
trap 'kill "${lanes[@]}" 2>/dev/null; exit 130' INT TERM
for ((number = 0; number < LANES; number++)); do
    lane "${steps[@]}" &
    lanes+=("$!")
done
for step in "${steps[@]}"; do
    for entry in "${STEPS[@]}"; do
        if [[ ${entry%%|*} == "$step" ]]; then printf '\n=== %s: %s\n' "$step" "${entry#*|}"; fi
    done
    if ! show "$step"; then
        echo "=== $step: not run to its end"
        failed+=("$step")
        continue
    fi
    read -r status seconds <"$LOG_DIR/$step.ended"
    result=ok
    if ((status)); then
        result=FAILED
        failed+=("$step")
        [[ -s $LOG_DIR/$step.note ]] || grep -m 1 -E '^error' "$LOG_DIR/$step.log" >"$LOG_DIR/$step.note" || true
    fi
    printf '=== %s: %s after %d s\n' "$step" "$result" "$seconds"
    rows+=("$(printf '%-10s %-7s %5d s   %s' "$step" "$result" "$seconds" "$(cat "$LOG_DIR/$step.note")")")
done

printf '\n%-10s %-7s %7s   %s\n' step result time what
printf '%s\n' "${rows[@]}"
printf '%d of %d steps held, in %d s\n' $((${#steps[@]} - ${#failed[@]})) ${#steps[@]} "$SECONDS"
if ((${#failed[@]})); then die "failed: ${failed[*]} (what each printed: target/test-logs/STEP.log)"; fi
