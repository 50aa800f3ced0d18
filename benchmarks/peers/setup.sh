#!/usr/bin/env bash
# One virtual environment per peer under .venvs/ (gitignored):  benchmarks/peers/setup.sh [flower] [pfl]
# torch comes first, by the exact version Fedloom is measured with and as the CPU build, so that no peer's own
# requirement pulls another. Where an index has only the default build: TORCH=torch==2.13.0 benchmarks/peers/setup.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
torch="${TORCH:-torch==2.13.0+cpu}"
python="${PYTHON:-python3.11}"
[ $# -gt 0 ] || set -- flower pfl
for peer in "$@"; do
    venv=".venvs/$peer"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip install --quiet)
    "${pip[@]}" "$torch"
    "${pip[@]}" -r "benchmarks/peers/$peer.txt"
    # flwr asks for a certifi of at least its own release day, which not every index has yet; a simulation on one
    # machine opens no TLS connection, so flower.txt holds flwr's other requirements and any certifi will do.
    [ "$peer" != flower ] || "${pip[@]}" --no-deps flwr==1.42.0
    "$venv/bin/python" -c "import torch; print('$peer ready: torch', torch.__version__)"
done
