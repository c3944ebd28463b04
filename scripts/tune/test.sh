#!/usr/bin/env bash
# All tests of scripts/tune.sh, demonstrations included: about half a minute.
# Needs root for the network namespaces; without it those are skipped, with the reason (in CI: they fail).
set -euo pipefail
cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")"

if command -v shellcheck >/dev/null; then
    shellcheck ../tune.sh test.sh
elif [[ ${CI:-} == true ]]; then
    echo "tune: shellcheck is needed in CI and was not found" >&2
    exit 1
else
    echo "tune: shellcheck was not found: skipped" >&2
fi
exec python3 -B -m unittest discover --start-directory . --pattern 'test_*.py' "$@"
