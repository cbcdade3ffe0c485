"""docs/gpu.md says what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import model
from benchmarks.gpu.counters import LAG
from benchmarks.gpu.plot import overview
from benchmarks.gpu.report import DATA, DOCUMENT, bounds, measured, processes, ratios, read, tables, with_tables
from coatcheck.bench.serve.result import Report
from coatcheck.bench.support.files import write_json
from coatcheck.engine.model.config import DEFAULT_MODEL
from tests.benchmarks.gpu.conftest import MakeRun

Make = Callable[..., Report]


def test_the_tables_are_those_of_the_data() -> None:
    text = DOCUMENT.read_text()
    assert with_tables(text, read(DATA)) == text


def rows(table: str) -> dict[str, list[str]]:
    """Cells by contender; one cell of the plan."""
    lines = [line.strip("|").split(" | ") for line in table.splitlines()[2:]]
    return {line[1].strip(): [cell.strip() for cell in line] for line in lines}


def test_a_miss_of_ours_is_bold_and_nobody_else_s(run: MakeRun, report: Make) -> None:
    made = report(run("carry", 1, 8.0), run("default", 1, 10.0), run("carry", 2, 8.5), run("default", 2, 11.0))
    found = rows(measured(made))
    assert found["carry"][2] == "**8.25 [8.00–8.50]**"
    assert found["default"][2] == "10.5 [10.0–11.0]"
    assert found["carry"][5] == "5.00 / 100 / 200"
    assert found["carry"][9] == "640 / 640"
    assert "**" not in "".join(found["default"])


def test_errors_are_counted_over_the_rounds(run: MakeRun, report: Make) -> None:
    import msgspec

    failed = msgspec.structs.replace(run("carry"), errors={"503": 2, "timeout": 1})
    made = report(failed, msgspec.structs.replace(failed, round=2))
    assert rows(measured(made))["carry"][8] == "6"


def test_ratios_name_the_best_installed_and_the_goals_missed(run: MakeRun, report: Make) -> None:
    made = report(run("carry", rate=8.0), run("default", rate=10.0), run("hash", rate=4.0))
    found = rows(ratios(made))
    assert found["default, the best installed"][2:3] == ["0.80"]
    assert found["default, the best installed"][-1] == "**requests/s**"
    assert found["hash"][2] == "2.00"
    assert found["hash"][-1] == ""


@pytest.mark.parametrize(
    ("tokens", "patches", "same"), [(1400.0, 5476 * 10, "yes"), (4.0, 5476 * 10, "**no**"), (1400.0, 4000, "**no**")]
)
def test_the_oracle_is_one_only_if_it_computes_what_the_others_do(
    run: MakeRun, report: Make, tmp_path: Path, tokens: float, patches: int, same: str
) -> None:
    model.write(DEFAULT_MODEL, tmp_path, "7b")
    counted = {
        "sglang:uncached_prompt_tokens_histogram_sum": 10 * tokens,
        "coatcheck_bench_resident_patches_total": float(patches),
    }
    made = report(run("carry"), run("resident", rate=20.0, uncached_tokens_per_request=tokens, counters=counted))
    made.options["model"] = (tmp_path / "config.json").read_text()
    line = bounds(made).splitlines()[2]
    assert line.endswith(f"| {same} |")
    if same == "yes":
        assert "| 73." in line and "| 27% |" in line


def test_processes_have_what_was_counted(run: MakeRun, report: Make) -> None:
    made = report(
        run(
            "carry",
            cpu_percent={"tokenizer": 98.0, "scheduler": 60.0, "other": 7.0},
            idle_cpu_percent={"default": 2.0, "hash": 3.0},
            pss_mib=2048,
            counted_s=10.0,
            counters={
                "sglang:uncached_prompt_tokens_histogram_sum": 14_000.0,  # of ten pictures
                f'{LAG}{{le="0.005"}}': 90.0,
                f'{LAG}{{le="+Inf"}}': 100.0,
            },
        )
    )
    figures = ["98.0", "60.0", "0", "7.00", "–", "–", "5.00", "2.00", "1.65", "10.0%"]
    assert rows(processes(made))["carry"][2:] == figures


def test_files_with_sglangs_own_settings_come_first_and_all_tables_can_be_made(
    run: MakeRun, report: Make, tmp_path: Path
) -> None:
    write_json(report(run("carry"), run("ipc")), tmp_path / "bounds-tp2.json.gz")
    write_json(report(run("carry"), run("default")), tmp_path / "settings-tp2.json.gz")
    found = read(tmp_path)
    assert list(found) == ["settings-tp2", "bounds-tp2"]
    assert {"machine", "measured", "ratios", "bound", "processes"} == set(tables(found))
    assert len(overview(found).axes) == 2
    assert json.loads(found["bounds-tp2"].options["model"]) == {}
