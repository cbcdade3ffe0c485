"""What the doctor says about SGLang, without SGLang."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import msgspec
import pytest

from coatcheck.doctor import sglang as sglang_plugin
from coatcheck.findings import Finding
from coatcheck.integrations.sglang.plugin import GROUP, NAME

PRINT = (sys.executable, "-c")


def test_the_findings_of_the_other_process_come_back() -> None:
    findings = [Finding("hook", "(self)", "as expected", "ok"), Finding("x", "y", "z", "failed")]
    code = f"import sys; sys.stdout.buffer.write({msgspec.json.encode(findings)!r})"
    assert sglang_plugin.probe((*PRINT, code)) == findings


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import sys; print('noise', file=sys.stderr); raise OSError('no libcuda')", "status 1: OSError: no libcuda"),
        ("import os; os.kill(os.getpid(), 11)", "status -11: nothing was printed"),
        ("print('[')", "status 0: nothing was printed"),
    ],
)
def test_an_import_that_fails_or_crashes_is_a_finding(code: str, found: str) -> None:
    (finding,) = sglang_plugin.probe((*PRINT, code))
    assert finding.status == "failed"
    assert found in finding.found


def test_an_import_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang_plugin, "_TIMEOUT", 0.2)
    (finding,) = sglang_plugin.probe((*PRINT, "import time; time.sleep(60)"))
    assert (finding.status, finding.found) == ("failed", "its import did not end within 0 s")


def test_absent_sglang_is_a_failure_only_if_it_is_wanted() -> None:
    assert {finding.status for finding in sglang_plugin.sglang_plugin({}, wanted=False)} == {"ok"}
    finding = sglang_plugin.sglang_plugin({}, wanted=True)[-1]
    assert (finding.what, finding.status) == ("SGLang", "failed")
    assert sys.prefix in finding.found


def test_with_sglang_its_entry_point_and_hooks_are_looked_at_unless_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sglang_plugin, "version", lambda: "0.5.23")
    monkeypatch.setattr(sglang_plugin, "probe", lambda command: [Finding("probed", "", "", "ok")])
    off = {"COATCHECK_SGLANG_ENABLED": "0"}
    assert [finding.what for finding in sglang_plugin.sglang_plugin({}, wanted=False)][1:] == ["entry point", "probed"]
    assert [finding.status for finding in sglang_plugin.sglang_plugin(off, wanted=False)] == ["warning"]
    assert [finding.what for finding in sglang_plugin.sglang_plugin(off, wanted=True)][1:] == ["entry point", "probed"]


@pytest.mark.parametrize(
    ("name", "value", "status", "wanted"),
    [
        ("COATCHECK_SGLANG_SHARE", "0.5", "ok", "ok"),
        ("COATCHECK_SGLANG_SHARE", "0", "warning", "failed"),
        ("COATCHECK_SGLANG_ENABLED", "0", "warning", "failed"),
        ("COATCHECK_SGLANG_ARENA_MIB", "lots", "failed", "failed"),
        ("COATCHECK_SGLANG_ARENA_MIB", "auto", "ok", "ok"),
    ],
)
def test_settings_are_listed_and_judged(name: str, value: str, status: str, wanted: str) -> None:
    finding = sglang_plugin.chosen({name: value}, wanted=False)
    assert finding.status == status
    assert value in finding.found
    assert sglang_plugin.chosen({name: value}, wanted=True).status == wanted


def test_sglang_of_another_environment_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "sglang"
    script.write_text(f"#!{tmp_path}/bin/python3\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(script.parent))
    (finding,) = sglang_plugin.elsewhere(wanted=False)
    assert finding.status == "warning"
    assert f"{tmp_path}/bin/python3 -m pip install coatcheck" in finding.means
    assert sglang_plugin.elsewhere(wanted=True)[0].status == "failed"
    script.write_text(f"#!{sys.executable}\n")
    assert sglang_plugin.elsewhere(wanted=True) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"#!/x/bin/python3.12\nrest", Path("/x/bin/python3.12")),
        (b"#!/bin/sh\n", None),
        (b"#!/usr/bin/env python3\n", None),
        (b"\x7fELF", None),
    ],
)
def test_only_a_script_of_an_environment_names_its_python(tmp_path: Path, line: bytes, expected: Path | None) -> None:
    (tmp_path / "script").write_bytes(line)
    assert sglang_plugin.interpreter(tmp_path / "script") == expected
    assert sglang_plugin.interpreter(tmp_path / "none") is None


def test_sglang_has_to_find_and_to_load_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    entries: list[EntryPoint] = []
    monkeypatch.setattr(sglang_plugin, "entry_points", lambda group: entries)
    assert sglang_plugin.entry_point({}).status == "failed"
    entries.append(EntryPoint("coatcheck", "coatcheck.integrations.sglang.plugin:register", "sglang.srt.plugins"))
    assert sglang_plugin.entry_point({}).status == "ok"
    assert sglang_plugin.entry_point({"SGLANG_PLUGINS": "other, coatcheck"}).status == "ok"
    assert sglang_plugin.entry_point({"SGLANG_PLUGINS": "other"}).status == "failed"


def test_the_package_registers_what_the_doctor_looks_for() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    target = project["entry-points"][GROUP][NAME]
    entry = EntryPoint(NAME, target, GROUP)
    assert callable(entry.load())


def test_the_probe_prints_findings_and_nothing_else() -> None:
    (finding,) = sglang_plugin.probe((sys.executable, "-m", "coatcheck.doctor.probe"))
    assert (finding.what, finding.found) == ("SGLang's version", "not installed")
    assert "COATCHECK_STOOD_ASIDE" not in os.environ
