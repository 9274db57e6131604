#!/usr/bin/env bash
# Fetches etcd, of which three members keep a cluster's state in tests/e2e. Debian's package is unpacked and not
# installed, for it starts a daemon. Says what it fetches, asks nothing, and does nothing when it is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly PACKAGE=etcd-server
readonly PLACE=target/etcd

fail() {
  printf 'tests/e2e/etcd.sh: %s\n' "$*" >&2
  exit 1
}

[[ ! -x "$PLACE/usr/bin/etcd" ]] || exit 0
echo "etcd.sh: fetching etcd (Debian's $PACKAGE), which is not installed"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fetch() {
  (cd "$work" && apt-get --quiet --quiet download "$PACKAGE" 2>"$work/errors")
}

if ! fetch; then
  # The lists of what there is may be too old, or never have been fetched.
  as_root=()
  ((EUID == 0)) || as_root=(sudo --non-interactive)
  "${as_root[@]}" apt-get --quiet --quiet update </dev/null \
    || fail "apt-get has no current lists; run this first: sudo apt-get update"
  fetch || fail "apt-get could not fetch $PACKAGE: $(<"$work/errors")"
fi
dpkg-deb --extract "$work/$PACKAGE"_*.deb "$work/etcd"
mkdir -p target
# Under its name only when it is whole.
rm -rf "$PLACE"
mv "$work/etcd" "$PLACE"
