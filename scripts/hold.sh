#!/usr/bin/env bash
# Holds many connections on this machine, idle and at a low rate, and says what each costs: `scripts/hold.sh --help`.
# A thin door: the work is done by scripts/hold/hold.py (Python 3.9 or later, no packages).
set -euo pipefail

here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
exec python3 -B "$here/hold/hold.py" "$@"
