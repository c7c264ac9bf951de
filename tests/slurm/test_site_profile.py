"""Site detection and the settings proposed from it: what is known is used, what is not is answered conservatively."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path

import pytest
from slurm_cluster import Cluster, missing_programs, running_cluster
from slurm_site import SlurmUser

from prompttuner.cli.frame.root import run
from prompttuner.config import Settings, SlurmSettings, load_settings
from prompttuner.errors import ConfigError
from prompttuner.sbatch_templates import render
from prompttuner.slurm.backend import AllocationRequest
from prompttuner.slurm.command import SlurmClient
from prompttuner.slurm.script import agent_script, build_script
from prompttuner.slurm.site.memory import MemoryRule, died_of_memory, needed_mb, parse_rule, weights_bytes
from prompttuner.slurm.site.profile import gpu_memory_gb, propose, to_toml
from prompttuner.slurm.site.site import (
    Limits,
    Partition,
    Site,
    detect_site,
    parse_gres,
    parse_limits,
    parse_partitions,
    parse_qos,
    parse_tree,
)
from prompttuner.slurm.site.waits import Waits, parse_waits

CRAY = """PartitionName=batch AllowGroups=ALL Default=YES DefaultTime=01:00:00 MaxTime=2-00:00:00 Nodes=c[1-9] \
PriorityTier=10 PreemptMode=OFF State=UP QoS=N/A
PartitionName=scavenge AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=UNLIMITED Nodes=g[1-4] \
PriorityTier=1 PreemptMode=REQUEUE State=UP QoS=low
PartitionName=broken Default=NO DefaultTime=NONE MaxTime=06:00:00 PriorityTier=10 PreemptMode=OFF State=DOWN QoS=N/A
"""


def site(**changes: object) -> Site:
    defaults: dict[str, object] = {
        "cluster": "c", "version": "23.11.4",
        "partitions": (Partition("gpu", True, True, 6 * 3600.0, None, 1, False, {"a100": 8, "v100": 4}),),
        "accounting": True, "limits": Limits(), "reservations": (), "scron": False, "hosts": ("g1",),
    }  # fmt: skip
    return Site(**{**defaults, **changes})  # type: ignore[arg-type]


def test_partitions() -> None:
    found = {p.name: p for p in parse_partitions(CRAY, {"scavenge": {"a100": 16}}, "OFF")}
    assert found["batch"].default
    assert found["batch"].walltime_s == 2 * 86400
    assert not found["batch"].preemptable
    assert found["scavenge"].preemptable
    assert found["scavenge"].walltime_s is None
    assert found["scavenge"].gpus == {"a100": 16}
    assert not found["broken"].up


@pytest.mark.parametrize(
    ("text", "gpus"),
    [
        ("gpu:a100:4(S:0-1),nvme:1", {"a100": 4}), ("gpu:2", {"gpu": 2}), ("(null)", {}), ("shard:8", {}),
        ("gpu:a100_3g.20gb:2(S:0),gpu:h100:1", {"a100_3g.20gb": 2, "h100": 1}), ("gres/gpu=4", {"gpu": 4}), ("", {}),
    ],
)  # fmt: skip
def test_gres(text: str, gpus: dict[str, int]) -> None:
    assert parse_gres(text) == gpus


def test_limits_are_the_tightest_of_association_and_qos() -> None:
    qos = "normal|10|500|gres/gpu=16|2-00:00:00\nother|1|1|gres/gpu=1|00:01:00\n"
    found = parse_limits("lab|normal||1000|cpu=1,gres/gpu=4|\n", qos)
    assert found == Limits(4, 10, 500, 2 * 86400.0, ("lab",), ("normal",))
    assert parse_limits("lab|normal|||| \nother|normal||||\n", "") == Limits(accounts=("lab", "other"), qos=("normal",))


def test_proposal_uses_what_is_known() -> None:
    limits = Limits(gpus=16, jobs=None, submitted=100, walltime_s=2 * 3600.0, accounts=("lab", "class"))
    proposal = propose(site(limits=limits, scron=True), {"SBATCH_ACCOUNT": "lab"}, False)
    assert proposal.settings["max_gpus"] == 16
    assert proposal.settings["max_jobs"] == 50
    assert proposal.settings["slurm"]["walltime_s"] == 2 * 3600
    assert proposal.settings["slurm"]["gpu_type"] == "a100"
    assert proposal.settings["slurm"]["account"] == "lab"
    assert any("scrontab" in word for word in proposal.words)


def test_proposal_is_conservative_where_nothing_is_known() -> None:
    bare = site(partitions=(), accounting=False, unknown=("limits: denied",))
    proposal = propose(bare, {}, False)
    assert proposal.settings["max_gpus"] == 4
    assert proposal.settings["max_submissions_per_minute"] == 10
    assert proposal.settings["slurm"] == {"gpu_directive": "none", "accounting": "no", "offline": True}
    assert any("limits: denied" in word for word in proposal.words)


def test_written_settings_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proposal = propose(site(), {}, True)
    (tmp_path / "config.toml").write_text(to_toml(proposal.settings, ('with "quotes"',)))
    monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    loaded = load_settings()
    assert loaded.slurm.walltime_s == 4 * 3600
    assert loaded.backend == "slurm"


def test_a_short_default_partition_is_not_taken_where_another_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    short = Partition("gpu-short", True, True, 600.0, None, 1, False, {"a100": 9})
    long = Partition("gpu_long", False, True, 2 * 86400.0, None, 1, False, {"a100": 9})
    proposal = propose(site(partitions=(short, long)), {}, False)
    assert proposal.settings["slurm"]["partition"] == "gpu_long"
    assert proposal.settings["slurm"]["walltime_s"] == 4 * 3600
    said = " ".join(proposal.words)
    assert "gpu-short ends jobs after 10m: gpu_long is taken instead" in said
    forced = propose(site(partitions=(short, long)), {}, False, "gpu-short")
    assert forced.settings["slurm"]["walltime_s"] == 600
    assert forced.settings["idle_limit_s"] == 150
    said = " ".join(forced.words)
    assert "10m, the most that is allowed" in said
    assert "That is little" in said
    assert "0.16" not in said


def test_walltime_follows_measured_waits() -> None:
    week = Partition("gpu", True, True, 7 * 86400.0, None, 1, False, {"a100": 9})
    rows = [f"{minutes}|2026-11-20T00:00:00|2026-11-20T00:{wait:02}:00" for minutes, wait in
            [(60, 1), (700, 5), (1400, 8), (9000, 59)] for _ in range(12)]  # fmt: skip
    waits = parse_waits("\n".join([*rows, "60|x|y", "|", "60|2026-11-20T00:00:00|Unknown"]))
    assert waits.by_length == ((3600.0, 60.0), (12 * 3600.0, 300.0), (24 * 3600.0, 480.0), (float("inf"), 3540.0))
    proposal = propose(site(partitions=(week,), waits={"gpu": waits}), {}, False)
    assert proposal.settings["slurm"]["walltime_s"] == 24 * 3600
    slow = Waits(((3600.0, 60.0), (float("inf"), 90000.0)))
    assert propose(site(partitions=(week,), waits={"gpu": slow}), {}, False).settings["slurm"]["walltime_s"] == 4 * 3600


def test_nobody_preempts_where_all_tiers_are_equal() -> None:
    record = "PartitionName={} PriorityTier=1 PreemptMode=REQUEUE State=UP\n"
    equal = parse_partitions(record.format("a") + record.format("b"), {}, "REQUEUE")
    assert [one.preemptable for one in equal] == [False, False]
    two = parse_partitions(record.format("a") + record.format("b").replace("=1", "=5"), {}, "REQUEUE")
    assert [one.preemptable for one in two] == [True, False]
    off = parse_partitions(
        record.format("a") + record.format("b").replace("=1", "=5"), {}, "REQUEUE", {"PreemptType": "preempt/none"}
    )
    assert not any(one.preemptable for one in off)


def test_limits_of_the_partitions_qos_and_of_all_accounts_above_count() -> None:
    qos = parse_qos("normal|||||||\npart|2||gres/gpu=3|1-00:00:00|gres/gpu=12|40|\n")
    assert qos["part"] == Limits(3, 2, None, 86400.0)
    tree = "root||||||\nfaculty||root|gres/gpu=6||90\nlab||faculty|gres/gpu=8|7|\nlab|me|||1|\nother||root||||\n"
    assert parse_tree(tree, ["lab"]) == Limits(6, 7, 90)
    assert parse_tree(tree, ["lab", "other"]) == Limits()
    part = Partition("gpu", True, True, 6 * 3600.0, None, 1, False, {"a100": 8}, "part")
    proposal = propose(site(partitions=(part,), limits=Limits(gpus=16), qos_limits=qos), {}, False)
    assert proposal.settings["max_gpus"] == 3
    assert proposal.settings["max_jobs"] == 1


def test_memory_is_asked_for_where_the_site_gives_too_little(tmp_path: Path) -> None:
    record = {"DefMemPerCPU": "100", "MaxMemPerNode": "UNLIMITED"}
    rule = parse_rule(record, {"SelectTypeParameters": "CR_CORE_MEMORY", "DefMemPerNode": "UNLIMITED"})
    assert rule == MemoryRule(per_cpu=100, enforced=True)
    assert rule.to_ask(4096, 1, 2) == 4096
    assert MemoryRule(per_gpu=64000, enforced=True).to_ask(4096, 1, 2) is None
    assert MemoryRule(enforced=True, most_per_node=3000).to_ask(4096, 1, 1) == 3000
    assert MemoryRule().to_ask(4096, 1, 1) is None, "nobody counts memory there"
    (tmp_path / "model.safetensors").write_bytes(b"0" * 2**20)
    (tmp_path / "pytorch_model.bin").write_bytes(b"0" * 2**20)
    assert weights_bytes(str(tmp_path)) == 2**20, "the same weights twice count once"
    assert needed_mb(2**20) == 3 * 1024
    assert needed_mb(7 * 2**30) == 16 * 1024
    assert weights_bytes("no/such-model", {"HF_HOME": str(tmp_path)}) is None
    script = build_script(request_in(tmp_path), SlurmSettings(), walltime_s=60, mem_mb=3072)
    assert "#SBATCH --mem=3072M\n" in agent_script(script)
    script = build_script(request_in(tmp_path), SlurmSettings(mem="8G"), walltime_s=60, mem_mb=3072)
    assert "#SBATCH --mem=8G\n" in agent_script(script)


@pytest.mark.parametrize(
    ("said", "died"),
    [
        ("slurmstepd: error: StepId=7.0 exceeded memory limit (180 > 100), being killed", True),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.", True),
        ("slurmstepd: error: Exceeded job memory limit", True),
        ("agent: idle for 600 s", False),
    ],
)
def test_an_end_for_want_of_memory_is_known_by_the_log(tmp_path: Path, said: str, died: bool) -> None:
    (tmp_path / "log.txt").write_text(f"start\n{said}\n")
    assert died_of_memory(tmp_path / "log.txt") is died
    assert not died_of_memory(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("kind", "memory"),
    [("a100", 40), ("a100_80gb", 80), ("nvidia_a100-sxm4-80gb", 80), ("h100", 80), ("Tesla-V100", 16), ("odd", None)],
)
def test_gpu_memory(kind: str, memory: int | None) -> None:
    assert gpu_memory_gb(kind) == memory


def request_in(folder: Path, **changes: object) -> AllocationRequest:
    fields: dict[str, object] = {
        "uuid": "u-1", "folder": folder, "pool": "p", "gpus": 1, "gpu_type": None, "walltime_s": None,
    }  # fmt: skip
    return AllocationRequest(**{**fields, **changes})  # type: ignore[arg-type]


def test_script_quotes_what_it_is_given_and_rounds_the_walltime_down(tmp_path: Path) -> None:
    folder = tmp_path / "with blank; rm -rf $HOME %j"
    chosen = SlurmSettings(account="lab", extra={"licenses": "a b;c", "spread-job": ""}, setup=("module load cuda",))
    script = build_script(request_in(folder), chosen, walltime_s=3659)
    text = agent_script(script)
    assert "#SBATCH --time=60\n" in text
    assert "#SBATCH --licenses='a b;c'\n" in text
    assert "#SBATCH --spread-job\n" in text
    assert "%%j" in text, "Slurm must not replace what is part of a path"
    for line in text.splitlines():
        assert "rm -rf" not in line or "'" in line
    assert text.index("module load cuda") < text.index("srun")


@pytest.mark.parametrize("option", ["job-name", "array", "requeue", "deadline", "--output"])
def test_options_that_would_break_an_allocation_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match="set by prompttuner"):
        build_script(request_in(tmp_path, options={option: "x"}), SlurmSettings(), walltime_s=60)


def test_setup_lines_cannot_smuggle_directives(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directive"):
        build_script(request_in(tmp_path, setup=("#SBATCH --partition=x",)), SlurmSettings(), walltime_s=60)
    with pytest.raises(ConfigError, match="control"):
        build_script(request_in(tmp_path, setup=("module load x\nrm",)), SlurmSettings(), walltime_s=60)


def test_own_template_wins_and_must_keep_the_command(tmp_path: Path) -> None:
    own = tmp_path / "templates"
    own.mkdir()
    (own / "agent.sh.j2").write_text(
        "#!/bin/bash -l\n{% for line in directives %}{{ line }}\n{% endfor %}#SBATCH --exclusive=user\n"
        "{% for line in command %}{{ line }}\n{% endfor %}"
    )
    script = build_script(request_in(tmp_path), SlurmSettings(), walltime_s=60, templates=own)
    assert "--exclusive=user" in agent_script(script)
    (own / "agent.sh.j2").write_text("#!/bin/bash\necho hello\n")
    with pytest.raises(ConfigError, match="agent would not start"):
        agent_script(script)
    (own / "agent.sh.j2").write_text("#!/bin/bash\n{{ no_such_value }}\n")
    with pytest.raises(ConfigError, match="no_such_value"):
        agent_script(script)


def test_containers_replace_the_step_launcher(tmp_path: Path) -> None:
    chosen = SlurmSettings(launcher="srun --container-image=img.sqsh", python="python3")
    text = agent_script(build_script(request_in(tmp_path), chosen, walltime_s=60))
    assert "\nsrun --container-image=img.sqsh python3 -u -m submitit" in text
    inside = SlurmSettings(launcher="apptainer exec --nv img.sif", python="python3")
    text = agent_script(build_script(request_in(tmp_path), inside, walltime_s=60))
    assert "apptainer exec --nv img.sif python3 -u -m submitit" in text
    assert "\nsrun --unbuffered" in text


def test_percent_signs_survive_cron_and_systemd(tmp_path: Path) -> None:
    values = {
        "settings": Settings(home=tmp_path / "50%"), "command": "/opt/pt", "words": ["/opt/pt x%"], "minutes": 5,
        "log_dir": tmp_path / "50%" / "logs", "setup": [], "scron": False, "job_name": "n",
        "environment": {"PROMPTTUNER_HOME": str(tmp_path / "50%")},
    }  # fmt: skip
    assert "50\\%" in render("cron.j2", values)
    assert "50%%" in render("systemd.service.j2", values)


@pytest.mark.slurm
@pytest.mark.timeout(600)
def test_a_site_that_gives_little_memory_is_asked_for_more_and_an_end_for_want_of_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing_programs(accounting=False):
        pytest.skip("no Slurm on this host")
    with running_cluster(nodes=1, gpus=2, accounting=False, little_memory=True) as cluster:
        for key, value in cluster.env.items():
            monkeypatch.setenv(key, value)
        found = detect_site(SlurmClient())
        rule = found.partition("gpu").memory  # type: ignore[union-attr]
        assert rule == MemoryRule(per_cpu=100, enforced=True)
        assert any("gives an allocation 100 MB" in word for word in propose(found, {}, False).words)
        user = SlurmUser(cluster, tmp_path / "small", **{"slurm.mem": "100M", "max_gpus": 1})
        try:
            user.start()
            user.submit("too large")
            user.until(lambda: any("out of memory" in cause for _, cause in user.events()), "its end is told", 90.0)
            assert any("slurm.mem" in cause for _, cause in user.events())
            assert not any(kind == "allocation.scancelled" for kind, _ in user.events())
        finally:
            user.stop()
        cluster.run("scancel", "--user", cluster.shape.user)
        user = SlurmUser(cluster, tmp_path / "enough", idle_limit_s=3, max_gpus=1)
        try:
            user.start()
            job = user.submit("fits", iterations=5)
            assert user.wait(job)[0]["state"] == "exhausted"
        finally:
            user.stop()


@pytest.mark.slurm
def test_gpus_of_drained_nodes_are_not_counted(slurm: Cluster) -> None:
    slurm.set_node("n4", "drain")
    try:
        assert detect_site(SlurmClient()).partition("gpu").gpus == {"fake": 6}  # type: ignore[union-attr]
    finally:
        slurm.set_node("n4", "resume")


@pytest.mark.slurm
def test_real_site_is_detected_and_passes_doctor(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = detect_site(SlurmClient())
    assert found.cluster == "throwaway"
    assert found.unknown == ()
    assert found.accounting
    partition = found.partition(None)
    assert partition is not None
    assert (partition.name, partition.gpus, partition.max_time_s) == ("gpu", {"fake": 8}, 7 * 86400)
    assert found.partition("spare").preemptable  # type: ignore[union-attr]
    assert "research" in found.limits.accounts
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 7200))
    slurm.run("scontrol", "create", "reservation", "ReservationName=repair", f"StartTime={start}", "Duration=60",
              "Flags=MAINT,IGNORE_JOBS", f"Users={slurm.shape.user}", "Nodes=ALL")  # fmt: skip
    try:
        monkeypatch.setenv("PROMPTTUNER_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        assert run(["init"]) == 0
        assert run(["init"]) == 4, "an existing file is not replaced"
        written = tomllib.loads((tmp_path / "home" / "config.toml").read_text())
        assert written["slurm"]["partition"] == "gpu"
        capsys.readouterr()
        assert run(["doctor"]) == 0
        said = capsys.readouterr().out
        assert "repair" in said
        assert run(["--set", "slurm.partition=nowhere", "--set", "cron_tick_s=400", "doctor"]) == 1
        said = capsys.readouterr().out
        assert "nowhere" in said
        assert "cron ticks" in said
    finally:
        slurm.run("scontrol", "delete", "ReservationName=repair")
