#!/usr/bin/env bash
# The page's modules against their JSDoc types. Needs node and npm; without them, or without a registry, it says so
# and passes: tests in a browser run the same files.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v npx >/dev/null; then
    echo "tsc: not run, there is no npx (Debian, Ubuntu: apt-get install npm)"
    exit 0
fi
tsc=(npx --yes --package typescript@5.9.3 tsc)
if ! version=$("${tsc[@]}" --version 2>/dev/null); then
    echo "tsc: not run, typescript can not be had"
    exit 0
fi
"${tsc[@]}" --project tools/tsconfig.json
echo "tsc: ${version}, no errors"
