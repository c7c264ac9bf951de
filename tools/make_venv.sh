#!/usr/bin/env bash
# make_venv.sh VENV [EXTRAS]: create or bring up to date a virtual environment with prompttuner in it, versions pinned.
# The clone is installed in editable form. Set TORCH_INDEX_URL to the index of PyTorch's CPU builds to spare a machine
# without a GPU the download of the CUDA libraries.
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
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "installing $torch${TORCH_INDEX_URL:+ from $TORCH_INDEX_URL}"
    pip install --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} "$torch"
fi
echo "installing prompttuner${extras:+ with $extras}"
pip install --constraint constraints.txt --editable ".${extras:+[$extras]}"
