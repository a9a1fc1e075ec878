#!/usr/bin/env bash
# Print a Python 3.11 or 3.12 that can make virtual environments. PYTHON in the environment is tried alone.
set -euo pipefail

can_be_used() {
    # A name on PATH is not enough: version managers leave names behind that only print an error.
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})' >/dev/null 2>&1
}

candidates=(python3.11 python3.12 python3 python)
[ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
for candidate in "${candidates[@]}"; do
    if can_be_used "$candidate"; then
        command -v "$candidate"
        exit 0
    fi
done

# Builtins only: on a machine this bare even `cat` may be missing from PATH.
echo "Querent needs Python 3.11 or 3.12 with its venv module; tried: ${candidates[*]}.
  Debian, Ubuntu:  apt-get install python3.11 python3.11-venv   (or 3.12)
  macOS:           brew install python@3.12
  elsewhere:       make demo PYTHON=/path/to/python3.11" >&2
exit 1
