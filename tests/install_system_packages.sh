#!/usr/bin/env bash
# Install what the Slurm and Postgres tests need (Debian, Ubuntu). Without root nothing is done: those tests are then
# skipped and the test summary says so. No service is started: the tests start their own, on own ports, and end them.
set -euo pipefail

# program, and the package that holds it
wanted=(
    slurmctld:slurm-wlm
    slurmctld:slurm-wlm-basic-plugins
    slurmd:slurmd
    sbatch:slurm-client
    slurmdbd:slurmdbd
    munged:munge
    mariadbd:mariadb-server
    postgres:postgresql
)

have() {
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null || compgen -G "/usr/lib/postgresql/*/bin/$1" >/dev/null
}

missing=()
for pair in "${wanted[@]}"; do
    have "${pair%%:*}" || missing+=("${pair##*:}")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "no apt-get here: tests that need ${missing[*]} are skipped unless these are installed by hand"
    exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
    echo "not root: tests that need ${missing[*]} are skipped. To run them: sudo $0"
    exit 0
fi

echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" # keeps the packages' own services from starting
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
mkdir -p /etc/postgresql-common
[ -e /etc/postgresql-common/createcluster.conf ] ||
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
# A mirror may stumble, another installation may be at work. Where it fails for good the tests say what they lack (and
# fail in CI, which skips none).
patient=(-qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
apt-get "${patient[@]}" update || echo "apt-get update failed: trying with the lists at hand"
apt-get "${patient[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null ||
    echo "could not install ${missing[*]}: tests that need them are skipped"
