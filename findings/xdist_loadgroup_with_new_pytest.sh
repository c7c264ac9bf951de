#!/usr/bin/env bash
# pytest-xdist's `--dist loadgroup` is to keep tests of one `xdist_group` on one worker. With pytest 9.2.0 it does not.
#
# Versions: pytest 9.2.0, pytest-xdist 3.8.0, Python 3.11.
# One would guess: six tests marked with the same group run on one worker, as xdist's documentation says.
# Seen: they are spread over both workers, without a warning. xdist puts "@group" behind each item's `_nodeid`; this
#       pytest takes a node's id from elsewhere, so the scheduler never sees a group. With pytest 8.4.2 the same
#       files and the same xdist keep the group together.
# Exit code 0: as described; 1: the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/test_group.py" <<'PY'
import time

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(6))
def test_in_a_group(number, worker_id):
    time.sleep(0.3)
    with open("workers.txt", "a") as file:
        file.write(worker_id + "\n")
PY
workers() { # workers PYTEST_VERSION: how many workers ran the group
    python3 -m venv "$folder/venv-$1"
    "$folder/venv-$1/bin/pip" -q --disable-pip-version-check install "pytest==$1" pytest-xdist==3.8.0
    rm -f "$folder/workers.txt"
    (cd "$folder" && "venv-$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist loadgroup test_group.py >/dev/null)
    sort -u "$folder/workers.txt" | wc -l
}
old=$(workers 8.4.2)
new=$(workers 9.2.0)
echo "workers that ran the one group: pytest 8.4.2: $old, pytest 9.2.0: $new"
[ "$old" = 1 ] && [ "$new" = 2 ]
