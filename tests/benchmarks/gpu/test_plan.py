"""What is left of a plan, and in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.gpu import __main__ as command_line
from benchmarks.gpu.plan import Cell, Group, Plan, base, chosen, read, schedule, windows
from coatcheck.errors import ConfigError

HERE = Path(command_line.__file__).parent
SMALL, LARGE = Cell(2, 1, 448, 1.0, 2.0), Cell(2, 4, 1024, 3.0, 4.0)
GROUP = Group("g", ("carry", "default", "hash"), (SMALL.name, LARGE.name), rounds=2)
PLAN = Plan((SMALL, LARGE), (GROUP,), 32, 4, 1.0, 0.5, overhead_s=1.0, start_s=10.0)


@pytest.mark.parametrize("name", ["plan.json", "plan_tp1.json", "plan_cpu.json"])
def test_the_plans_are_plans_of_at_least_two_rounds(name: str) -> None:
    plan = read(HERE / name)
    assert all(group.rounds >= 2 and base(group.contenders) for group in plan.groups)


def test_the_plan_for_gpus_has_every_contender_and_cell_that_was_asked_for() -> None:
    plan = read(HERE / "plan.json")
    wanted = {(clients, *picture) for clients in (32, 96) for picture in ((1, 1024), (4, 1024), (1, 448))}
    assert {(cell.clients, cell.images, cell.side) for cell in plan.cells} == wanted
    assert {name for group in plan.groups for name in group.contenders} >= {
        "whole",
        "carry",
        "default",
        "hash",
        "ipc",
        "flag",
    }
    assert "resident" in {name for group in plan.groups for name in group.contenders}
    for group in plan.groups:
        assert set(group.cells) == {cell.name for cell in plan.cells}


def test_rounds_are_interleaved_and_every_turn_begins_with_another() -> None:
    left = windows(PLAN, GROUP, ())
    assert len(left) == 12
    assert [window.round for window in left] == [1] * 6 + [2] * 6
    firsts = [left[at].contender for at in range(0, 12, 3)]
    assert firsts == ["carry", "default", "default", "hash"]
    for at in range(0, 12, 3):
        turn = left[at : at + 3]
        assert len({window.cell for window in turn}) == 1
        assert {window.contender for window in turn} == set(GROUP.contenders)


def test_what_is_done_is_left_out_and_the_rest_keeps_its_order() -> None:
    every = windows(PLAN, GROUP, ())
    assert windows(PLAN, GROUP, {window.key for window in every[:5]}) == every[5:]
    assert windows(PLAN, GROUP, {every[3].key}) == every[:3] + every[4:]
    assert windows(PLAN, GROUP, {window.key for window in every}) == []


def test_the_schedule_adds_ramps_windows_and_overhead() -> None:
    text = schedule(PLAN, {"g": windows(PLAN, GROUP, ())})
    assert "12 windows, round 1: 36 s, round 2: 36 s; 72 s, and up to 10 s to start" in text
    assert "done; 0 s, and up to 0 s" in schedule(PLAN, {"g": []})


def test_a_part_of_a_plan() -> None:
    part = chosen(PLAN, ["g"], [LARGE.name], 3)
    assert part.groups == (Group("g", GROUP.contenders, (LARGE.name,), 3),)
    assert chosen(PLAN, (), (), None) == PLAN
    with pytest.raises(ConfigError, match="no group x; it has g"):
        chosen(PLAN, ["x"], (), None)
    with pytest.raises(ConfigError, match="no cell y; it has 2x1-448, 2x4-1024"):
        chosen(PLAN, (), ["y"], None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"whole", "default"', '"default"', "lacks whole and carry"),
        ('"default"', '"defualt"', "no contender is called defualt; there are whole, carry"),
        ('"2x1-280"]', '"2x1-281"]', "no cell 2x1-281"),
        ('"rounds": 2', '"rouds": 2', "is no plan"),
        ('"bounds"', '"settings"', "two groups of one name"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (HERE / "plan_cpu.json").read_text()
    assert old in text
    (tmp_path / "plan.json").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / "plan.json")


def test_wrong_options_end_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["schedule", "--groups", "nobody"]) == 2
    assert "it has choices, bounds" in capsys.readouterr().err
    where = ["--out", str(tmp_path), "--state", str(tmp_path)]
    assert command_line.main(["run", *where, "--spy", "nobody"]) == 2
    assert "no contender is called nobody" in capsys.readouterr().err
    assert command_line.main(["schedule", "--rounds", "0"]) == 2
