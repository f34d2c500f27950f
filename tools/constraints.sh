#!/usr/bin/env bash
# Writes constraints.txt anew: everything that `pip install -e .[dev]` takes, in a clean environment.
# torch keeps the version that is pinned now (move it by hand): its builds are chosen by index, not by version.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:?usage: tools/constraints.sh PYTHON}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

grep -E '^torch==' constraints.txt >"$scratch/torch.txt"
"$python" -m venv "$scratch/venv"
# shellcheck disable=SC2086 # PIP_FLAGS is a list of words
"$scratch/venv/bin/python" -m pip install -qq --disable-pip-version-check ${PIP_FLAGS:-} \
    -c "$scratch/torch.txt" -e '.[dev]'

{
    sed -n '/^#/p' constraints.txt
    # A local version such as +cpu names a build for one platform: pins must hold on all of them.
    "$scratch/venv/bin/python" -m pip freeze -qq --disable-pip-version-check --all --exclude-editable |
        grep -Eiv '^pip==' | sed -E 's/\+[a-z0-9.]+$//' | LC_ALL=C sort -f
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
echo "constraints.txt: $(grep -c '==' constraints.txt) pins"
