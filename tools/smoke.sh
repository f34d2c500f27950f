#!/usr/bin/env bash
# Builds the source archive, the wheel from it, and uses that wheel as a stranger would: a fresh
# environment without extras, outside of the checkout, offline from any model hub.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:?usage: tools/smoke.sh PYTHON (one that has build and hatchling)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
constraints=$PWD/constraints.txt
step() { printf '==> %s\n' "$*"; }

step "building the source archive and the wheel"
"$python" -m build --no-isolation --outdir "$scratch/dist" . >"$scratch/build.log" 2>&1 || {
    cat "$scratch/build.log"
    exit 1
}
ls -l "$scratch/dist"

step "installing the wheel in a fresh environment"
"$python" -m venv "$scratch/venv"
# shellcheck disable=SC2086 # PIP_FLAGS is a list of words
"$scratch/venv/bin/python" -m pip install -qq --disable-pip-version-check ${PIP_FLAGS:-} \
    -c "$constraints" "$scratch"/dist/*.whl

cd "$scratch"
export PATH="$scratch/venv/bin:$PATH" HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1
export HF_HOME="$scratch/hub" DINOPROBE_CACHE="$scratch/cache"
unset PYTHONPATH

step "dinoprobe --version, --help, import"
dinoprobe --version
dinoprobe --help >help.txt
grep -q demo help.txt
python -c "import dinoprobe, pathlib; assert 'site-packages' in pathlib.Path(dinoprobe.__file__).parts"

step "dinoprobe demo"
dinoprobe demo --json --out "$scratch/demo" >demo.json
python - <<'PYTHON'
import json
import pathlib

json.loads(pathlib.Path("demo.json").read_text("utf-8"))  # one document and nothing else
made = sorted(str(p.relative_to("demo")) for p in pathlib.Path("demo").rglob("*.html"))
assert made, "dinoprobe demo wrote no report under its --out"
print("report:", ", ".join(made))
PYTHON
step "smoke test passed"
