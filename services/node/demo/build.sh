#!/bin/sh
# Builds the demo's guest program: an unmodified C program for WASI preview 1.
# Usage: services/node/demo/build.sh [OUT]   (default target/wasm/wordcount.wasm)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-"$here/../../../target/wasm/wordcount.wasm"}
mkdir -p "$(dirname "$out")"
# Renamed into place, so that a run beside this one never sees half a module.
clang --target=wasm32-wasi -O2 -Wall -Wextra -Werror -o "$out.$$" "$here/wordcount.c"
mv "$out.$$" "$out"
