#!/usr/bin/env bash
# Finds or installs the independent HdrHistogram readers that the tests of resound-load compare with, under DIR.
# Prints `python=PATH` and `jar=PATH` for those that are there; says on stderr why one is not.
# Usage: hdr-readers.sh DIR
set -euo pipefail

dir=${1:?usage: hdr-readers.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
requirements=$here/../loadtest/tests/hdr_readers/requirements.txt
venv=$dir/hdr-readers

# The mark is written last: an installation that was cut short is made again.
if ! cmp -s "$requirements" "$venv/installed"; then
  rm -rf "$venv"
  if python3 -m venv "$venv" >&2 && "$venv/bin/pip" install --quiet --requirement "$requirements" >&2; then
    cp "$requirements" "$venv/installed"
  else
    rm -rf "$venv"
    echo "the Python package is not there: python3 with venv and access to a package index install it" >&2
  fi
fi
if [[ -e $venv/installed ]]; then
  echo "python=$venv/bin/python"
fi

jar=${HDRHISTOGRAM_JAR:-/usr/share/java/hdrhistogram.jar}
if [[ -e $jar ]] && command -v java >/dev/null; then
  echo "jar=$jar"
else
  echo "the Java library is not there: apt-get install libhdrhistogram-java default-jre-headless, or set HDRHISTOGRAM_JAR" >&2
fi
