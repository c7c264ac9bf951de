"""Arguments that several commands take, with their help and what the shell completes."""

from __future__ import annotations

from typing import Annotated

import typer

from prompttuner.cli.frame.completion import job_words

__all__ = ["JobWord", "JobWords"]

JobWord = Annotated[
    str, typer.Argument(metavar="JOB", help="Id, beginning of an id, or name.", autocompletion=job_words)
]
JobWords = Annotated[
    list[str], typer.Argument(metavar="JOB...", help="Ids, beginnings of ids, or names.", autocompletion=job_words)
]
