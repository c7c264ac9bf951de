"""Tables on narrow terminals: ids are never cut, columns go in a stated order, notes stay on one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prompttuner.cli.frame.fitting import fitted
from prompttuner.cli.jobs.status import COLUMNS, DROPPED

JOB = "1128-a7f3c2"
ROW = [JOB, "reverse-upper-lr3", "running", "120/400", "0.2371", "loss<=0.3", "in 12m30s", "2",
       "2 GPUs of small: predicted end at 14:03:20, 7m before its deadline, the fewest that meet it"]  # fmt: skip


def wide(columns: list[str], rows: list[list[str]]) -> int:
    """Characters that such a table takes."""
    return 1 + sum(3 + max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True))


def test_a_wide_terminal_shows_everything() -> None:
    fit = fitted(COLUMNS, [ROW], 250, DROPPED, "note")
    assert fit.columns == COLUMNS
    assert fit.rows == [ROW]
    assert fit.left_out == []


def test_eighty_columns_show_id_state_deadline_and_gpus_on_one_line() -> None:
    fit = fitted(COLUMNS, [ROW], 80, DROPPED, "note")
    assert wide(fit.columns, fit.rows) <= 80
    assert {"job", "state", "deadline", "GPUs", "iteration"} <= set(fit.columns)
    assert fit.rows[0][0] == JOB
    assert "target" in fit.left_out


def test_a_note_is_cut_before_other_columns_go() -> None:
    fit = fitted(COLUMNS, [ROW], 140, DROPPED, "note")
    assert fit.columns == COLUMNS
    assert fit.rows[0][-1].endswith("…")
    assert wide(fit.columns, fit.rows) <= 140


def test_columns_without_a_value_make_room_first() -> None:
    fit = fitted(COLUMNS, [[JOB, "", "queued", "", "", "", "in 5m", "0", ROW[-1]]], 100, DROPPED, "note")
    assert "name" not in fit.columns
    assert "note" in fit.columns
    assert not {"name", "metric"} & set(fit.left_out), "what is empty is not missed"


@given(width=st.integers(10, 300), note=st.text(max_size=120))
def test_ids_states_and_deadlines_are_whole_at_any_width(width: int, note: str) -> None:
    fit = fitted(COLUMNS, [[*ROW[:-1], note]], width, DROPPED, "note")
    shown = dict(zip(fit.columns, fit.rows[0], strict=True))
    assert (shown["job"], shown["state"], shown["deadline"]) == (JOB, "running", "in 12m30s")
    assert "\n" not in "".join(fit.rows[0])
    if width >= 50:
        assert wide(fit.columns, fit.rows) <= width
