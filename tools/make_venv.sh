#!/usr/bin/env bash
# make_venv.sh VENV [EXTRAS]: create or bring up to date a virtual environment with prompttuner in it, versions pinned.
# The clone is installed in editable form. On a machine without an NVIDIA GPU the small CPU build of torch is taken.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
extras=${2:-}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: Python 3.11 or newer is needed; '$python' is not. Set PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    echo "creating $venv"
    "$python" -m venv "$venv" || {
        echo "error: no virtual environment could be made (on Debian and Ubuntu: apt-get install python3-venv)" >&2
        exit 1
    }
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check -qq "$@"; }

torch=$(grep '^torch==' constraints.txt)
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null && ! command -v nvidia-smi >/dev/null; then
    echo "installing $torch (CPU build: there is no NVIDIA GPU)"
    pip install --no-deps --index-url https://download.pytorch.org/whl/cpu --timeout 10 --retries 1 \
        "$torch" 2>/dev/null || echo "the CPU build cannot be reached; the default build of torch will be installed"
fi
echo "installing prompttuner${extras:+ with $extras}"
pip install --constraint constraints.txt --editable ".${extras:+[$extras]}"
