"""A file out of a package that is downloaded by pip and never installed: pinned, checked by hash, bounded in time."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from prompttuner.errors import ModelError
from prompttuner.files import make_private_dir, sha256_file, write_bytes

__all__ = ["PackageFile", "check_space", "fetch_package_file"]

LIMIT_S = 3600
"""Longest time that a download may take in all."""
SILENCE_S = 60
"""Longest time without a byte."""


@dataclass(frozen=True, slots=True)
class PackageFile:
    """One file of one package."""

    package: str
    version: str
    wheel: str
    """The wheel's file name."""
    wheel_sha256: str
    member: str
    """The file inside it."""
    sha256: str
    size: int
    """Bytes of the file; of the wheel too, as it is hardly compressed."""

    @property
    def requirement(self) -> str:
        """As pip wants it."""
        return f"{self.package}=={self.version}"


def check_space(folder: Path, needed: int) -> None:
    """Check that a disk has ``needed`` bytes free.

    Raises:
        ModelError: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelError(
            f"{folder} has {free / 1e6:.0f} MB free, and {needed / 1e6:.0f} MB are needed; make room, or set "
            "PROMPTTUNER_HOME to a folder on another disk"
        )


def fetch_package_file(what: PackageFile, folder: Path, *, quiet: bool) -> Path:
    """The file, unpacked into ``folder``; what is there already, whole, is used.

    A download that was cut off is made again; one that is complete is kept, so that what comes after it can be
    repeated without a network. The wheel may also be put into ``folder`` by hand.

    Raises:
        ModelError: no pip, no network, no such package, another file than the pinned one, no room.
    """
    target = folder / Path(what.member).name
    if target.is_file() and target.stat().st_size == what.size and sha256_file(target) == what.sha256:
        return target
    make_private_dir(folder)
    check_space(folder, 2 * what.size + (16 << 20))
    wheel = folder / what.wheel
    if wheel.is_file() and sha256_file(wheel) != what.wheel_sha256:
        wheel.unlink()  # cut off, or another file of this name
    if not wheel.is_file():
        _download(what, folder, quiet)
    scratch = target.with_name(f".{target.name}.part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(what.member) as source, scratch.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
        if sha256_file(scratch) != what.sha256:
            raise ModelError(f"{what.member} in {wheel.name} is not the file that is expected (its hash differs)")
        scratch.replace(target)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink(missing_ok=True)
        raise ModelError(f"{wheel.name} is damaged ({error}); call the command again") from None
    finally:
        scratch.unlink(missing_ok=True)
    return target


def _download(what: PackageFile, folder: Path, quiet: bool) -> None:
    """Let pip download the wheel into ``folder``, whole or not at all."""
    wanted = folder / "requirement.txt"
    scratch = folder / ".download"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        write_bytes(wanted, f"{what.requirement} --hash=sha256:{what.wheel_sha256}\n".encode())
        command = [
            sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes",
            "--disable-pip-version-check", "--no-input", "--retries", "5", "--timeout", str(SILENCE_S),
            "--progress-bar", "off" if quiet else "on", "--dest", str(scratch), "--requirement", str(wanted),
        ]  # fmt: skip
        stdout = subprocess.DEVNULL if quiet else sys.stderr.fileno()
        try:
            done = subprocess.run(
                command, stdout=stdout, stderr=subprocess.PIPE, timeout=LIMIT_S, check=False, text=True
            )
        except subprocess.TimeoutExpired:
            raise ModelError(f"{what.requirement} was not there after {LIMIT_S / 60:.0f} minutes; call again") from None
        if done.returncode:
            raise ModelError(_explain(what, folder, done.stderr))
        (scratch / what.wheel).replace(folder / what.wheel)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            wanted.unlink()


def _explain(what: PackageFile, folder: Path, told: str) -> str:
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        reason = "this Python has no pip"
    elif any("DO NOT MATCH" in line for line in lines):
        reason = "what the package index has is another file than the one that was tested (its hash differs)"
    else:
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        reason = errors[-1].removeprefix("ERROR: ")[:300] if errors else "pip did not say why"
    return (
        f"{what.requirement} cannot be downloaded: {reason}. On a machine with a network, run: pip download --no-deps "
        f"{what.requirement}; copy {what.wheel} into {folder}, and call this command again"
    )
