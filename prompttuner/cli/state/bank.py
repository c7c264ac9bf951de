"""``prompttuner bank``: what is in the Prompt Bank, and bringing prompts in and out."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prompttuner.cli.frame import context
from prompttuner.cli.frame.completion import entry_words, model_words
from prompttuner.cli.frame.output import JsonFlag, print_json, print_pairs, print_table, writing
from prompttuner.errors import DataError, NotFound, SpecError

if TYPE_CHECKING:
    from prompttuner.bank import Bank, Shelf

__all__ = ["app"]

app = typer.Typer(help="Look after the Prompt Bank: list, add, import, publish.", no_args_is_help=True)

SHORT = 12
NOTHING = "nothing is in the bank yet; jobs that reach their target and 'prompttuner bank add' put prompts into it"
BankOption = Annotated[Path | None, typer.Option("--bank", help="Bank folder; default: your own.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="LLM: hub id, folder, or 'small'.", autocompletion=model_words)
]
Task = Annotated[str, typer.Option(help="What the prompt is for.")]
Source = Annotated[str, typer.Option(help="Where it comes from.")]
Licence = Annotated[str, typer.Option(help="Its licence.")]
EntryWord = Annotated[str, typer.Argument(metavar="ENTRY", help="Id, or its beginning.", autocompletion=entry_words)]


@app.command()
def add(
    model: Annotated[
        str, typer.Option("--model", "-m", help="LLM: hub id, folder, or 'small'.", autocompletion=model_words)
    ],
    text: Annotated[str | None, typer.Option(help="A prompt in words.")] = None,
    file: Annotated[Path | None, typer.Option(help="A soft prompt in a safetensors file.")] = None,
    task: Task = "",
    source: Source = "",
    licence: Licence = "",
    bank: BankOption = None,
    json: JsonFlag = False,
) -> None:
    """Add one prompt, a text or a soft prompt."""
    from prompttuner.bank import Entry
    from prompttuner.bank.folder.adapters import read_single_tensor

    if (text is None) == (file is None):
        raise SpecError("give either --text or --file")
    shelf = _create(bank).shelf(_located(model))
    entry = Entry("text", model, text=text or "", task=task, source=source or "by hand", licence=licence)
    entry_id = shelf.add(entry, None if file is None else read_single_tensor(file))
    if json:
        print_json({"id": entry_id})
    else:
        typer.echo(f"{entry_id[:SHORT]} is in the bank {shelf.bank.root}")


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="JSONL, text with one prompt a line, or PEFT adapter folders.")],
    model: Annotated[
        str, typer.Option("--model", "-m", help="LLM: hub id, folder, or 'small'.", autocompletion=model_words)
    ],
    task: Task = "",
    source: Source = "",
    licence: Licence = "",
    bank: BankOption = None,
    json: JsonFlag = False,
) -> None:
    """Import many prompts from files or PEFT adapters."""
    from prompttuner.bank import BadEntry, Entry
    from prompttuner.bank.folder.imports import read_prompts

    shelf = _create(bank).shelf(_located(model))
    before, added, refused = set(shelf.ids()), [], []
    about = Entry("text", model, task=task, source=source, licence=licence)
    for path in paths:
        for item in read_prompts(path, about):
            try:
                if item.entry is None:
                    raise BadEntry(item.reason)
                added.append(shelf.add(item.entry, item.prompt))
            except BadEntry as error:
                refused.append({"where": item.where, "reason": str(error)})
    new = len(set(added) - before)
    if json:
        print_json({"new": new, "known": len(set(added)) - new, "refused": refused, "ids": list(dict.fromkeys(added))})
    else:
        typer.echo(f"{new} new, {len(set(added)) - new} known already, {len(refused)} refused")
        for row in refused[:20]:
            typer.echo(f"  {_plain(row['where'])}: {_plain(row['reason'])}", err=True)
    if refused and not added:
        raise DataError("nothing could be imported")


@app.command("list")
def list_(
    model: ModelOption = None,
    bank: BankOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Most entries to show.")] = 50,
    json: JsonFlag = False,
) -> None:
    """List entries, newest first."""
    from prompttuner.cli.state.bank_entries import entry_rows

    rows, bad = entry_rows(_shelves(bank, model))
    if json:
        print_json(rows[:limit])
        return
    if not rows:
        others = f"no prompt for {model} yet; 'prompttuner bank list' shows the others"
        typer.echo(NOTHING if model is None else others, err=True)
    table = [
        [
            r["id"][:SHORT],
            r["kind"],
            _plain(r["task"])[:40],
            r["ita"],
            f"{r['used']} ({r['reached']} reached)" if r["used"] else "0",
            _plain(r["source"])[:40],
            _plain(r["model"]),
        ]
        for r in rows[:limit]
    ]
    if table:
        print_table(["entry", "kind", "task", "ITA", "used", "source", "LLM"], table)
    if len(rows) > limit:
        typer.echo(f"{len(rows) - limit} more: raise --limit")
    if bad:
        typer.echo(f"{bad} bad entries left out: 'prompttuner bank check' says why", err=True)


@app.command()
def show(entry: EntryWord, bank: BankOption = None, json: JsonFlag = False) -> None:
    """Show all that is known about an entry, and how jobs fared with it."""
    from prompttuner.bank.folder.shelf import outcomes_in
    from prompttuner.bank.index.trial_log import read_trials

    shelf, entry_id = _one(bank, entry)
    found = shelf.read(entry_id)
    outcomes = outcomes_in(_shelves(bank, None)).get((shelf.key, entry_id), [])
    trial = read_trials(shelf).get(entry_id)
    if json:
        tried = None if trial is None else {"complete": trial.complete, "best": trial.best, "after": trial.after}
        print_json(asdict(found) | {"bank": str(shelf.bank.root), "outcomes": outcomes, "trial": tried})
        return
    about = {key: value for key, value in asdict(found).items() if key not in {"quality", "shape"}}
    about |= {"tokens x width": None if found.shape is None else f"{found.shape[0]} x {found.shape[1]}"}
    about |= {f"quality: {key}": value for key, value in found.quality.items()}
    print_pairs({_plain(key): _plain(str(value)) for key, value in about.items() if value is not None})
    if outcomes:
        rows = [[_plain(str(o.get(k, ""))) for k in ("job", "reached", "ita", "score", "at")] for o in outcomes]
        print_table(["job", "reached", "ITA", "score", "at"], rows, title="jobs that started from it")
    if trial is not None and trial.after:
        best = sorted(trial.after.items(), key=lambda item: item[1])
        print_table(
            ["entry", "loss after a few steps"],
            [[_plain(name[:SHORT]), f"{loss:.3g}"] for name, loss in best],
            title="had its own job come later: the best of the other entries",
        )


@app.command()
def remove(
    entries: Annotated[list[str], typer.Argument(metavar="ENTRY...", autocompletion=entry_words)],
    bank: BankOption = None,
) -> None:
    """Remove entries."""
    found = [_one(bank, word) for word in entries]
    for shelf, entry_id in found:
        shelf.remove(entry_id)
        typer.echo(f"{entry_id[:SHORT]} removed")


@app.command()
def export(
    entry: EntryWord,
    to: Annotated[Path, typer.Argument(help="File to write: .safetensors for a soft prompt, any other for a text.")],
    bank: BankOption = None,
) -> None:
    """Write a prompt to a file that 'submit --initial-prompt' takes."""
    from prompttuner.files import write_bytes

    shelf, entry_id = _one(bank, entry)
    found = shelf.read(entry_id)
    if found.kind == "text":
        with writing(to):
            write_bytes(to, (found.text + "\n").encode())
    else:
        if to.suffix != ".safetensors":
            raise SpecError(f"{entry_id[:SHORT]} is a soft prompt: give a file that ends in .safetensors")
        from safetensors.numpy import save

        with writing(to):
            write_bytes(to, save({"prompt": shelf.prompt(found)}))
    typer.echo(f"{entry_id[:SHORT]} written to {to}")


@app.command()
def stats(bank: BankOption = None, json: JsonFlag = False) -> None:
    """Count entries, clusters, uses and leave-one-out trials for each LLM."""
    from prompttuner.bank.folder.shelf import outcomes_in
    from prompttuner.bank.index.shelf_index import load_index
    from prompttuner.bank.index.trial_log import read_trials

    rows = []
    shelves = _shelves(bank, None)
    outcomes = outcomes_in(shelves)
    for shelf in shelves:
        index = load_index(shelf)
        ids = set(shelf.ids())
        used = [o for entry_id in ids for o in outcomes.get((shelf.key, entry_id), ())]
        rows.append(
            {
                "model": shelf.model,
                "entries": len(ids),
                "with features": len(ids & {index.ids[n] for n in index.known.nonzero()[0]}),
                "clusters": len(index.clusters.medoids),
                "uses": len(used),
                "reached": sum(bool(o.get("reached")) for o in used),
                "tried": sum(trial.complete for trial in read_trials(shelf).values()),
                "features": index.recipe,
            }
        )
    if json:
        print_json(rows)
    elif rows:
        print_table(list(rows[0]), [[_plain(str(v)) for v in row.values()] for row in rows])
    else:
        typer.echo(NOTHING, err=True)


@app.command()
def check(bank: BankOption = None, json: JsonFlag = False) -> None:
    """Check every entry, and name those that are refused and why."""
    found = [
        {"model": shelf.model, "entry": name, "reason": reason}
        for shelf in _shelves(bank, None)
        for name, reason in shelf.check()
    ]
    if json:
        print_json(found)
    else:
        for row in found:
            typer.echo(f"{_plain(row['entry'])[:60]}: {_plain(row['reason'])}")
        if not found:
            typer.echo("all entries are sound")
    if found:
        raise DataError(f"{len(found)} bad entries are never used; 'prompttuner bank remove ENTRY' takes one out")


@app.command()
def publish(
    entries: Annotated[list[str], typer.Argument(metavar="ENTRY...", autocompletion=entry_words)],
    to: Annotated[Path, typer.Option(help="The shared bank's folder; made if there is none.")],
    group_write: Annotated[bool, typer.Option(help="If it is made: others of the group may publish too.")] = False,
    bank: BankOption = None,
    json: JsonFlag = False,
) -> None:
    """Copy own entries into a shared bank, readable by the folder's group."""
    from prompttuner.bank import Bank
    from prompttuner.bank.folder.layout import Sharing

    found = [_one(bank, word) for word in entries]
    with writing(to, "--to"):
        shared = Bank.create(to.expanduser(), Sharing.GROUP_WRITE if group_write else Sharing.GROUP_READ)
    if shared.sharing is Sharing.PRIVATE:
        raise SpecError(f"{to} is a private bank; nobody else could read what is published there")
    done = []
    for shelf, entry_id in found:
        entry = shelf.read(entry_id)
        prompt = shelf.prompt(entry) if entry.kind == "soft" else None
        done.append(shared.shelf_like(shelf).add(entry, prompt))
    if json:
        print_json({"bank": str(shared.root), "ids": done})
    else:
        typer.echo(f"{len(done)} published in {shared.root} ({shared.sharing})")


def _folder(bank: Path | None) -> Path:
    return bank.expanduser() if bank is not None else context.settings().bank_dir


def _create(bank: Path | None) -> Bank:
    from prompttuner.bank import Bank

    return Bank.create(_folder(bank))


def _located(model: str) -> str:
    from prompttuner.spec.models import locate_model

    return locate_model(model, Path.cwd())


def _shelves(bank: Path | None, model: str | None) -> list[Shelf]:
    """The shelves of one bank, or of all banks in reach; of one LLM, or of all."""
    from prompttuner.bank import Bank
    from prompttuner.bank.folder.layout import model_key

    own = context.settings().bank_dir
    folders = [bank.expanduser()] if bank is not None else list(context.settings().all_bank_dirs)
    shelves: list[Shelf] = []
    for folder in folders:
        if bank is None and folder == own and not (own / "bank.json").exists():
            continue  # nothing was ever put into it
        shelves += Bank.open(folder).shelves()
    return [s for s in shelves if model is None or s.key == model_key(_located(model))]


def _one(bank: Path | None, word: str) -> tuple[Shelf, str]:
    """The entry that ``word`` begins."""
    hits = {entry_id: shelf for shelf in reversed(_shelves(bank, None)) for entry_id in shelf.find(word)}
    if len(hits) != 1:
        what = "no entry begins" if not hits else f"{len(hits)} entries begin"
        raise NotFound(f"{what} with {word!r}; 'prompttuner bank list' shows them")
    entry_id, shelf = hits.popitem()
    return shelf, entry_id


def _plain(text: str) -> str:
    """Text from a file that somebody else may have written: no control characters reach the terminal."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)
