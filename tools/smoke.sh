#!/usr/bin/env bash
# Builds the source archive, the wheel from it, and uses that wheel as a stranger would: a fresh
# environment without extras, outside of the checkout, offline from any model hub.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${1:?usage: tools/smoke.sh PYTHON (one that has build and hatchling)}
[[ $python == */* && $python != /* ]] && python=$PWD/$python
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
step "an exported file is served without torch, in an environment of its own"
# shellcheck disable=SC2086
"$scratch/venv/bin/python" -m pip install -qq --disable-pip-version-check ${PIP_FLAGS:-} \
    -c "$constraints" onnx onnxruntime
dinoprobe export "$scratch/demo/run-001" --to onnx --out "$scratch/onnx" --quiet
"$python" -m venv "$scratch/serving"
serving=$scratch/serving/bin
# shellcheck disable=SC2086 # the packages that the README names
"$serving/python" -m pip install -qq --disable-pip-version-check ${PIP_FLAGS:-} -c "$constraints" \
    numpy pillow onnxruntime typer fastapi uvicorn prometheus-client python-multipart
"$serving/python" -m pip install -qq --disable-pip-version-check --no-deps "$scratch"/dist/*.whl
du -sh "$scratch/serving"
"$serving/python" - "$scratch/onnx/model.onnx" "$scratch/demo/digits/test" <<'PYTHON'
import importlib.util
import json
import pathlib
import subprocess
import sys
import urllib.request

for name in ("torch", "transformers", "sklearn", "scipy"):
    assert importlib.util.find_spec(name) is None, f"{name} is here"
command = [sys.executable, "-m", "dinoprobe", "serve", sys.argv[1], "--port", "0", "--json"]
with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    try:
        address = json.loads(process.stdout.readline())["url"]
        image = next(pathlib.Path(sys.argv[2]).rglob("*.png")).read_bytes()
        headers = {"content-type": "image/png"}
        request = urllib.request.Request(f"{address}/predict", image, headers)
        (row,) = json.load(urllib.request.urlopen(request))["predictions"]
        assert row["label"], row
    finally:
        process.terminate()
assert process.returncode == 0, process.returncode
PYTHON
step "smoke test passed"
