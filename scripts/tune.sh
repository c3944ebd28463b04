#!/usr/bin/env bash
# Checks and raises the kernel's limits for many TCP connections: `scripts/tune.sh --help`.
# A thin door: the work is done by scripts/tune/tune.py (Python 3.9 or later, no packages).
set -euo pipefail

here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'; then
    echo "tune: python3, 3.9 or later, is needed in PATH" >&2
    exit 2
fi
# -B: a checkout run as root should not collect files owned by root.
exec python3 -B "$here/tune/tune.py" "$@"
