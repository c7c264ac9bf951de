"""``prompttuner doctor``: is everything as it must be, and if not, what to do."""

from __future__ import annotations

import typer

from prompttuner.cli.doctor.checks import CHECKS
from prompttuner.cli.doctor.findings import Finding, Verdict
from prompttuner.cli.frame import context
from prompttuner.cli.frame.output import JsonFlag, print_json, print_table
from prompttuner.words import Counted

__all__ = ["app"]

app = typer.Typer()


@app.command()
def doctor(json: JsonFlag = False) -> None:
    """Check this machine and these settings, and say what to do."""
    settings = context.settings()
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            findings.extend(check(settings))
        except Exception as error:  # one check that breaks must not hide what the others find
            findings.append(Finding(check.__name__, Verdict.WRONG, f"could not be checked: {error}"))
    wrong = sum(finding.verdict == Verdict.WRONG for finding in findings)
    if json:
        print_json(
            {"wrong": wrong, "findings": [{"what": f.what, "verdict": f.verdict, "text": f.text} for f in findings]}
        )
    else:
        print_table(["what", "verdict", "finding"], [[f.what, f.verdict, f.text] for f in findings])
        typer.echo("All is well." if not wrong else f"{Counted(wrong, 'thing')} to mend before jobs can run well.")
    if wrong:
        raise typer.Exit(1)
