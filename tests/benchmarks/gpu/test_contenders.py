"""What each contender's server is started with."""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks.gpu.contenders import CONTENDERS, PLUGIN, RESIDENT, ROOT, command, cuda, environment
from benchmarks.gpu.plan import read
from coatcheck.integrations.sglang import settings

BASE = cuda(4, 1000)
MODEL = Path("m")


def variables(name: str, **inherited: str) -> dict[str, str]:
    return environment(BASE, CONTENDERS[name], inherited, Path("/plugins"))


def test_two_have_the_plugin_at_its_defaults_but_for_the_mode() -> None:
    inherited = {"COATCHECK_SGLANG_ARENA_MIB": "1", PLUGIN: "1"}
    for name in CONTENDERS:
        chosen = settings.read(variables(name, **inherited))
        assert chosen.enabled == (name in ("whole", "carry"))
        assert chosen.whole == (name != "carry")
        assert chosen.arena_bytes == settings.read({}).arena_bytes


def test_contenders_differ_in_what_their_names_say_and_in_nothing_else() -> None:
    common = command(BASE, CONTENDERS["default"], MODEL, 1)
    options = {name: command(BASE, one, MODEL, 1) for name, one in CONTENDERS.items()}
    assert {name for name, words in options.items() if words != common} == {"ipc", "flag"}
    assert options["ipc"] == [*common, "--mm-feature-transport", "cuda_ipc"]
    assert options["flag"] == [*common, "--enable-broadcast-mm-inputs-process"]
    differing = {name for name in CONTENDERS if variables(name) != variables("default")}
    assert differing == {"whole", "carry", "hash", "resident"}
    assert variables("hash")["SGLANG_MM_PRECOMPUTE_HASH"] == "1"


def test_the_options_that_all_have() -> None:
    words = command(BASE, CONTENDERS["carry"], MODEL, 31000)
    given = dict(itertools.pairwise(words))
    assert (given["--tp"], given["--port"], given["--max-total-tokens"]) == ("4", "31000", "1000")
    plan = read(Path(__file__).parents[3] / "benchmarks/gpu/plan.json")
    at_once = max(cell.clients for cell in plan.cells) + plan.text_streams + 2  # and a probe, and /health
    assert int(given["--cuda-graph-max-bs-decode"]) >= at_once


def test_the_oracle_finds_its_entry_point_and_the_others_do_not() -> None:
    assert variables("resident", PYTHONPATH="/a:/b")["PYTHONPATH"] == f"/plugins:{ROOT}:/a:/b"
    assert variables("resident")[RESIDENT] == "1"
    assert variables("default", PYTHONPATH="/a:/b")["PYTHONPATH"] == "/a:/b"
    assert RESIDENT not in variables("default")
