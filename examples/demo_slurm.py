"""The demo on a throw-away Slurm cluster: the same jobs, in allocations that Slurm grants.

Starts slurmctld, four nodes with two fake GPUs each, slurmdbd and MariaDB under a temporary folder, runs the jobs of
``demo.py`` there, shows what Slurm accounted for, and takes everything down again. Needs Debian's packages
slurm-wlm slurm-wlm-basic-plugins slurmdbd munge slurm-client mariadb-server; root is not needed once they are there.

    python examples/demo_slurm.py [--home DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import demo
from slurm_cluster import Cluster, missing_programs, running_cluster

from prompttuner.config import load_settings


def show_accounting(cluster: Cluster, jobs: int) -> None:
    """Slurm's own view: warm agents need fewer Slurm jobs than there were tuning jobs."""
    text = cluster.run(
        "sacct", "--allocations", "--starttime=now-1day", "--format=JobID,JobName%42,State%12,Elapsed,AllocTRES%40"
    )
    print(text, end="")
    held = sum("pt-" in line for line in text.splitlines())
    print(f"{jobs} tuning jobs ran in {held} Slurm jobs")


def main() -> int:
    """Run the demo on a throw-away cluster; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".demo"), help="where everything of the demo is kept")
    home = parser.parse_args().home.absolute()
    missing = missing_programs()
    if missing:
        print(f"not installed: {', '.join(missing)}; see the first lines of this file", file=sys.stderr)
        return 2
    shutil.rmtree(home, ignore_errors=True)
    with running_cluster() as cluster:
        print(f"throw-away Slurm cluster at {cluster.prefix}: {len(cluster.shape.node_names)} nodes, 2 GPUs each")
        os.environ.update(cluster.env)
        settings = load_settings(
            {
                "home": str(home), "backend": "slurm", "policy": "prompttuner", "tick_s": 0.25, "poll_s": 0.1,
                "idle_limit_s": 60, "squeue_min_s": 1, "max_gpus": 2, "slurm.partition": "gpu",
                "elastic.interface": "lo", "slurm.walltime_s": 1800,
            }
        )  # fmt: skip
        code = demo.run(settings)
        show_accounting(cluster, len(demo.PLANS) + 1)  # and the urgent one
    return code


if __name__ == "__main__":
    sys.exit(main())
