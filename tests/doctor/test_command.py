"""``coatcheck doctor`` from a shell in which SGLang is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from coatcheck.doctor.command import table
from coatcheck.findings import Finding


def doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("COATCHECK_SGLANG_")}
    return subprocess.run(
        [sys.executable, "-m", "coatcheck", "doctor", *arguments],
        capture_output=True, text=True, timeout=19, check=False, env={**kept, "PATH": "/nowhere", **environ},
    )  # fmt: skip


def test_without_sglang_everything_works_that_is_there() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    assert "memfd" in done.stdout
    assert "not installed in" in done.stdout


def test_json_has_the_same_findings_for_programs() -> None:
    done = doctor("--json", "--for", "sglang", COATCHECK_SGLANG_ARENA_MIB="1")
    assert done.returncode == 1
    report = json.loads(done.stdout)
    assert {"schema", "coatcheck", "python", "prefix", "works", "findings"} == set(report)
    assert (report["schema"], report["works"], report["prefix"]) == (1, False, sys.prefix)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert found["SGLang"]["status"] == "failed"
    assert found["memory"]["found"].endswith("the arena takes 1 MiB")
    assert "ARENA_MIB=1" in found["settings (COATCHECK_SGLANG_*)"]["found"]


def test_an_arena_of_no_set_size_has_to_fit_at_its_least() -> None:
    report = json.loads(doctor("--json").stdout)
    found = {finding["what"]: finding for finding in report["findings"]}
    assert found["memory"]["found"].endswith("the arena takes 64 MiB")
    assert "ARENA_MIB=auto" in found["settings (COATCHECK_SGLANG_*)"]["found"]


def test_a_setting_that_is_not_allowed_fails_although_nothing_was_asked_for() -> None:
    done = doctor("--json", COATCHECK_SGLANG_SHARE="2")
    assert done.returncode == 1
    assert "COATCHECK_SGLANG_SHARE: '2' is not allowed; allowed: 0 to 1" in done.stdout


def test_an_unknown_wish_is_named_with_what_is_known() -> None:
    done = doctor("--for", "vllm")
    assert done.returncode == 2
    assert "--for: 'vllm' is not one of sglang" in done.stderr


@pytest.mark.parametrize("status", ["ok", "warning", "failed"])
def test_the_table_takes_words_as_they_are(status: str) -> None:
    made = table([Finding("[bold]a", "[/x]", "c", status)])  # type: ignore[arg-type]
    assert made.row_count == 1
