#!/usr/bin/env bash
# Make .venv if there is none and install the project into it: scripts/setup_venv.sh EXTRAS
# TORCH_INDEX: an index that torch and torchvision are taken from, for example one with CPU builds.
set -euo pipefail
cd "$(dirname "$0")/.."
extras=$1
python=.venv/bin/python

if [ ! -x "$python" ]; then
    base=$(scripts/find_python.sh)
    echo "Making .venv with $("$base" -V) ($base)"
    "$base" -m venv --clear .venv
elif ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' 2>/dev/null; then
    echo "The Python of .venv does not run or is not 3.11 or 3.12: run 'make clean', then try again." >&2
    exit 1
fi

if [ -n "${TORCH_INDEX:-}" ]; then
    # Without dependencies: everything else comes, in the pinned version, from the usual index.
    echo "Installing torch and torchvision from $TORCH_INDEX"
    "$python" -m pip install --no-deps -c constraints.txt --index-url "$TORCH_INDEX" torch torchvision
else
    "$python" scripts/announce_torch.py
fi
echo "Installing the pinned dependencies ($extras)"
"$python" -m pip install -c constraints.txt -e ".[$extras]"
