#!/usr/bin/env bash
# Installs the servers of others that tests/foreign.rs measures, at pinned versions, into the directory given.
# Does nothing where they are installed already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=$1 into=$2

case $what in
python)
    if ! cmp -s "$here/requirements.txt" "$into/venv/installed"; then
        python3 -m venv --clear "$into/venv"
        "$into/venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt"
        cp "$here/requirements.txt" "$into/venv/installed"
    fi
    ;;
node)
    mkdir -p "$into/node"
    if ! cmp -s "$here/package-lock.json" "$into/node/installed"; then
        cp "$here/package.json" "$here/package-lock.json" "$into/node/"
        (cd "$into/node" && npm ci --silent --no-audit --no-fund)
        cp "$here/package-lock.json" "$into/node/installed"
    fi
    ;;
*)
    echo "usage: install.sh python|node DIRECTORY" >&2
    exit 2
    ;;
esac
