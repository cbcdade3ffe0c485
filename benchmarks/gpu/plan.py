"""What is to be measured: cells, groups of contenders, rounds; what of it is left, in which order, for how long.

A plan is a JSON file: plan.json for two GPUs, plan_tp1.json for one of 139 GiB, plan_cpu.json to try it on a CPU.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from benchmarks.gpu.contenders import CONTENDERS
from coatcheck.bench.support.turns import rotated
from coatcheck.errors import ConfigError

BASES = ("whole", "carry")  # every group has one: ratios are of the first that it has, over each other contender


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One load."""

    clients: int
    images: int  # per request
    side: int  # pixels, square
    ramp_s: float  # longer than one latency, so that the window begins in a steady state
    window_s: float

    @property
    def name(self) -> str:
        """As ``--cells`` has it."""
        return f"{self.clients}x{self.images}-{self.side}"


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Servers that stay up together."""

    name: str
    contenders: tuple[str, ...]
    cells: tuple[str, ...]  # names of the plan's
    rounds: int = 2


class Window(msgspec.Struct, frozen=True):
    """One measurement of one contender."""

    contender: str
    cell: Cell
    round: int  # from 1

    @property
    def key(self) -> tuple[str, int, int, int, int]:
        """What tells it from the others of a group."""
        return (self.contender, self.cell.clients, self.cell.images, self.cell.side, self.round)


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    cells: tuple[Cell, ...]
    groups: tuple[Group, ...]  # the most important first
    output_tokens: int
    text_streams: int
    probe_s: float
    health_s: float
    overhead_s: float  # of a window beyond its ramp and itself: draining, counters
    start_s: float  # what servers need to start, the first time on a machine

    def cell(self, name: str) -> Cell:
        """Raises ConfigError."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise ConfigError(f"the plan has no cell {name}; it has {', '.join(cell.name for cell in self.cells)}")

    def seconds(self, cell: Cell) -> float:
        """Of one window."""
        return cell.ramp_s + cell.window_s + self.overhead_s


def read(path: Path) -> Plan:
    """Raises ConfigError if it is no plan, or one that could not be measured."""
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"--plan: {path} is no plan: {error}") from error
    names = [group.name for group in plan.groups]
    if len(set(names)) < len(names):
        raise ConfigError(f"--plan: {path}: two groups of one name")
    for group in plan.groups:
        if unknown := set(group.contenders) - CONTENDERS.keys():
            raise ConfigError(
                f"--plan: group {group.name}: no contender is called {', '.join(sorted(unknown))}; "
                f"there are {', '.join(CONTENDERS)}"
            )
        if base(group.contenders) is None:
            raise ConfigError(f"--plan: group {group.name} lacks {' and '.join(BASES)}, of which ratios are")
        for name in group.cells:
            plan.cell(name)
    return plan


def base(contenders: Sequence[str]) -> str | None:
    """The one of a group whose figures are divided by the others'; None if it has none."""
    return next((name for name in BASES if name in contenders), None)


def chosen(plan: Plan, groups: Sequence[str], cells: Sequence[str], rounds: int | None) -> Plan:
    """The part of it that the options ask for; empty: all. Raises ConfigError for what is not in it."""
    known = {group.name: group for group in plan.groups}
    if unknown := [name for name in groups if name not in known]:
        raise ConfigError(f"--groups: the plan has no group {', '.join(unknown)}; it has {', '.join(known)}")
    for name in cells:
        plan.cell(name)
    return msgspec.structs.replace(
        plan,
        groups=tuple(
            msgspec.structs.replace(
                group,
                cells=tuple(name for name in group.cells if not cells or name in cells),
                rounds=rounds or group.rounds,
            )
            for group in ([known[name] for name in groups] or plan.groups)
        ),
    )


def windows(plan: Plan, group: Group, done: Collection[tuple[str, int, int, int, int]]) -> list[Window]:
    """What is left, in order: round by round, in each cell by cell, the contenders in turns that begin with another."""
    left = []
    for round_ in range(1, group.rounds + 1):
        for at, name in enumerate(group.cells):
            for contender in rotated(group.contenders, round_ - 1 + at):
                window = Window(contender, plan.cell(name), round_)
                if window.key not in done:
                    left.append(window)
    return left


def schedule(plan: Plan, left: dict[str, list[Window]]) -> str:
    """Seconds by group and round, for whoever has to give a machine that long. ``left``: by group."""
    lines = []
    for group in plan.groups:
        by_round: dict[int, float] = {}
        for window in left[group.name]:
            by_round[window.round] = by_round.get(window.round, 0) + plan.seconds(window.cell)
        rounds = ", ".join(f"round {number}: {seconds:.0f} s" for number, seconds in by_round.items()) or "done"
        total = sum(by_round.values())
        lines.append(
            f"group {group.name} ({', '.join(group.contenders)}): {len(left[group.name])} windows, {rounds}; "
            f"{total:.0f} s, and up to {plan.start_s if total else 0:.0f} s to start"
        )
    every = sum(plan.seconds(window.cell) for windows_ in left.values() for window in windows_)
    return "\n".join([*lines, f"together {every:.0f} s of windows"])
