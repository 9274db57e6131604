#!/bin/sh
# Makes the virtual environment that client.py runs in, with exactly the packages of
# requirements.txt. Does nothing when it is there already.
# Usage: docs/examples/python/setup.sh [DIRECTORY]   (default target/foreign/python)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=${1:-"$here/../../../target/foreign/python"}
python=${PYTHON:-python3}

# The list that is installed stands in the environment, so that a changed list is noticed.
if cmp -s "$here/requirements.txt" "$venv/installed.txt" && "$venv/bin/python" -c '' 2>/dev/null; then
  exit 0
fi
"$python" -c 'import ensurepip' 2>/dev/null || {
  echo "setup.sh: $python cannot make virtual environments: run make setup, or apt-get install python3-venv" >&2
  exit 1
}
echo "setup.sh: installing pycapnp, PyNaCl and blake3 from PyPI into $venv"
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip --quiet --disable-pip-version-check --no-input install \
  --only-binary :all: --require-hashes --requirement "$here/requirements.txt"
cp "$here/requirements.txt" "$venv/installed.txt"
