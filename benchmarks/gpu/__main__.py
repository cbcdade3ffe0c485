"""Command line; README.md has the whole procedure."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.gpu import model, plan
from benchmarks.gpu.contenders import CONTENDERS, cpu, cuda
from benchmarks.gpu.servers import Fleet
from coatcheck.engine.model.config import DEFAULT_MODEL
from coatcheck.errors import ConfigError

HERE = Path(__file__).parent
KV_TOKENS = 150_000  # 4.3 GB a GPU at tp 2: four servers share 80 GB


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 for options that cannot be."""
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.action(parsed))
    except ConfigError as error:
        print(f"python -m benchmarks.gpu: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    actions = parser.add_subparsers(required=True)

    made = actions.add_parser("model", help="write a model's directory, without weights")
    made.add_argument("directory", type=Path)
    made.add_argument("--size", choices=model.SIZES, default="7b")
    made.set_defaults(action=_model)

    shown = actions.add_parser("schedule", help="what a plan has, and how long it takes")
    _plan_options(shown)
    shown.set_defaults(action=_schedule)

    run = actions.add_parser("run", help="measure what is left of the plan, for at most --budget seconds")
    _plan_options(run)
    run.add_argument("--out", type=Path, required=True, help="where results gather over the calls")
    run.add_argument("--copy", type=Path, action="append", default=[], help="results are written there as well")
    run.add_argument("--state", type=Path, required=True, help="the servers' logs, and which run")
    run.add_argument("--model", type=Path, help="a model's directory; default: one of 7B dimensions in --state")
    run.add_argument("--tp", type=int, default=2, help="GPUs, or with --cpu ranks")
    run.add_argument("--budget", type=float, default=540, help="seconds for all of this call")
    run.add_argument("--keep", action="store_true", help="leave the servers running for the next call")
    run.add_argument("--kv-tokens", type=int, default=KV_TOKENS, help="room of each server's key-value cache")
    run.add_argument("--stagger", type=float, default=5, help="seconds between starts of a group's servers")
    run.add_argument("--first-port", type=int, default=31000, help="another one for a second run beside this one")
    run.add_argument("--cpu", action="store_true", help="try the benchmark itself, on SGLang's CPU build")
    run.add_argument("--spy", type=_names, default=(), help="sample these contenders by py-spy; measure nothing")
    run.add_argument("--spy-cell", default="", help="under this load; default: the group's first")
    run.set_defaults(action=_run)

    stop = actions.add_parser("stop", help="end the servers that --keep left")
    stop.add_argument("--state", type=Path, required=True)
    stop.set_defaults(action=_stop)
    return parser


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plan",
        type=Path,
        help="default, of this package: plan.json, with --tp 1 plan_tp1.json, with --cpu plan_cpu.json",
    )
    parser.add_argument("--groups", type=_names, default=(), help="of the plan, in this order; default: all")
    parser.add_argument("--cells", type=_names, default=(), help="of the plan, as 32x1-1024; default: all")
    parser.add_argument("--rounds", type=int, help="default: the plan's")


def _names(value: str) -> tuple[str, ...]:
    return tuple(filter(None, value.split(",")))


def _chosen(parsed: argparse.Namespace) -> plan.Plan:
    name = "plan_tp1.json" if getattr(parsed, "tp", None) == 1 else "plan.json"
    default = HERE / ("plan_cpu.json" if getattr(parsed, "cpu", False) else name)
    if parsed.rounds is not None and parsed.rounds < 1:
        raise ConfigError(f"--rounds {parsed.rounds}: allowed are whole numbers from 1 on")
    return plan.chosen(plan.read(parsed.plan or default), parsed.groups, parsed.cells, parsed.rounds)


def _model(parsed: argparse.Namespace) -> int:
    model.write(DEFAULT_MODEL, parsed.directory, parsed.size)
    return 0


def _schedule(parsed: argparse.Namespace) -> int:
    chosen = _chosen(parsed)
    print(plan.schedule(chosen, {group.name: plan.windows(chosen, group, ()) for group in chosen.groups}))
    return 0


def _run(parsed: argparse.Namespace) -> int:
    from benchmarks.gpu import spy
    from benchmarks.gpu.runner import Runner, Settings

    chosen = _chosen(parsed)
    if unknown := set(parsed.spy) - CONTENDERS.keys():
        raise ConfigError(
            f"--spy: no contender is called {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}"
        )
    if parsed.spy:
        spy.check()
        if parsed.spy_cell:
            chosen.cell(parsed.spy_cell)
    directory = parsed.model or (DEFAULT_MODEL if parsed.cpu else parsed.state / "model-7b")
    if not (directory / "config.json").exists():
        model.write(DEFAULT_MODEL, directory, "7b")
    signal.signal(signal.SIGTERM, _ended)  # so that what has to be done at the end is done
    Runner(
        Settings(
            plan=chosen,
            base=cpu(parsed.tp) if parsed.cpu else cuda(parsed.tp, parsed.kv_tokens),
            model=directory.resolve(),
            out=parsed.out,
            copies=tuple(parsed.copy),
            state=parsed.state.resolve(),
            tp=parsed.tp,
            budget_s=parsed.budget,
            keep=parsed.keep,
            stagger_s=parsed.stagger,
            first_port=parsed.first_port,
            spy=parsed.spy,
            spy_cell=parsed.spy_cell,
        )
    ).run()
    return 0


def _stop(parsed: argparse.Namespace) -> int:
    fleet = Fleet(parsed.state.resolve())
    fleet.stop(list(fleet.servers))
    return 0


def _ended(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
