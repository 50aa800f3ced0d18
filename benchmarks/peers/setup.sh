#!/usr/bin/env bash
# One virtual environment per peer under .venvs/ (gitignored): benchmarks/peers/setup.sh [flower] [pfl]
# The CPU build of torch is installed first, by its exact version, so that no peer's own pin replaces it.
# If your index carries only the default build, TORCH=torch==2.13.0 works too (larger, same results).
set -euo pipefail
cd "$(dirname "$0")/../.."
torch="${TORCH:-torch==2.13.0+cpu}"
python="${PYTHON:-python3.11}"
[ $# -gt 0 ] || set -- flower pfl
for peer in "$@"; do
    venv=".venvs/$peer"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "$torch"
    "$venv/bin/python" -m pip install --quiet -r "benchmarks/peers/$peer.txt"
    "$venv/bin/python" -m pip check || true      # reported, not fatal: pins of unused extras may disagree
    "$venv/bin/python" -c "import torch; print('$peer: torch', torch.__version__)"
done
