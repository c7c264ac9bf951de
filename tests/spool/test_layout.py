"""What the spool accepts: only the user's own plain files, of a protocol that it speaks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from prompttuner.errors import SpoolError
from prompttuner.files import create_json, read_json, write_json
from prompttuner.protocol.agents import PROTOCOL, AgentStatus, Order
from prompttuner.slurm.spool import Spool, read_own_json


def test_files_and_folders_are_private(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool").ensure()
    write_json(spool.request("r1"), {"id": "r1"})
    assert spool.root.stat().st_mode & 0o777 == 0o700
    assert spool.request("r1").stat().st_mode & 0o777 == 0o600
    assert read_own_json(spool.request("r1")) == {"id": "r1"}


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077, 0o177, 0o277])
def test_files_and_folders_are_private_and_usable_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o2777)
    before = os.umask(umask)
    try:
        spool = Spool(tmp_path / "far" / "spool").ensure()
        write_json(spool.request("r1"), {"id": "r1"})
    finally:
        os.umask(before)
    folders = [tmp_path / "far", spool.root, spool.inbox, spool.agents, spool.jobs, spool.replies]
    assert {folder.stat().st_mode & 0o777 for folder in folders} == {0o700}
    assert spool.inbox.stat().st_mode & 0o2000 == tmp_path.stat().st_mode & 0o2000  # the group pays for its quota
    assert spool.request("r1").stat().st_mode & 0o777 == 0o600


def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_json(path, {})
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(SpoolError, match="another user"):
        read_own_json(path)


def test_a_file_that_cannot_even_be_opened_is_refused_if_it_is_another_users_and_awaited_if_it_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {})

    def shut(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", shut)  # root may open everything
    with pytest.raises(PermissionError):  # a ticket that has run out, say
        read_own_json(path)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(SpoolError, match="another user"):
        read_own_json(path)


def test_links_and_files_that_others_may_write_are_refused(tmp_path: Path) -> None:
    path, link = tmp_path / "x.json", tmp_path / "link.json"
    write_json(path, {})
    link.symlink_to(path)
    with pytest.raises(SpoolError, match="not a plain file"):
        read_own_json(link)
    path.chmod(0o620)
    with pytest.raises(SpoolError, match="chmod go-w"):
        read_own_json(path)


def test_a_spool_of_a_newer_protocol_is_left_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool").ensure()
    write_json(spool.protocol, {"protocol": PROTOCOL + 1})
    with pytest.raises(SpoolError, match="newer prompttuner"):
        spool.ensure()
    assert read_json(spool.protocol) == {"protocol": PROTOCOL + 1}


@pytest.mark.parametrize("content", [[7], "one", {"protocol": "one"}, {}])
def test_a_protocol_file_that_makes_no_sense_is_written_again(tmp_path: Path, content: object) -> None:
    spool = Spool(tmp_path / "spool").ensure()
    write_json(spool.protocol, content)
    spool.ensure()
    assert read_json(spool.protocol) == {"protocol": PROTOCOL}


def test_missing_half_written_and_broken_files_read_as_nothing(tmp_path: Path) -> None:
    assert read_own_json(tmp_path / "missing.json") is None
    (tmp_path / "half.json").write_bytes(b'{"a": ')
    (tmp_path / "half.json").chmod(0o600)
    assert read_own_json(tmp_path / "half.json") is None


def test_a_file_is_created_by_exactly_one(tmp_path: Path) -> None:
    assert create_json(tmp_path / "claim.json", {"by": "a"})
    assert not create_json(tmp_path / "claim.json", {"by": "b"})
    assert read_json(tmp_path / "claim.json") == {"by": "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["claim.json"], "no scrap is left"


def test_messages_ignore_unknown_keys_and_fill_in_missing_ones() -> None:
    assert Order.expect({"seq": 3, "of_the_future": 1}).seq == 3
    status = AgentStatus(beat=4, state="warm", models=("m",))
    assert AgentStatus.read(json.loads(json.dumps(status.to_json()))) == status
    assert AgentStatus.expect({}).state == "starting"


def test_without_a_ticket_cron_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Path:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("prompttuner.slurm.spool.layout.make_private_dir", denied)
    with pytest.raises(SpoolError, match="Kerberos or AFS ticket"):
        Spool(tmp_path / "spool").ensure()
