"""A report written and read again; what is no report is refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from coatcheck.bench.engine.result import Report
from coatcheck.bench.support.files import read_json, write_json
from coatcheck.errors import ConfigError


@pytest.mark.parametrize("name", ["report.json", "report.json.gz"])
def test_round_trip(report: Report, tmp_path: Path, name: str) -> None:
    write_json(report, tmp_path / name)
    assert read_json(tmp_path / name, Report) == report


def test_gz_is_compressed_and_the_same_each_time(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(report, tmp_path / "plain.json")
    write_json(report, tmp_path / "one.json.gz")
    monkeypatch.setattr("time.time", lambda: 2e9)
    write_json(report, tmp_path / "two.json.gz")
    packed = (tmp_path / "one.json.gz").read_bytes()
    assert packed == (tmp_path / "two.json.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "plain.json").read_bytes()
    assert json.loads(gzip.decompress(packed))["schema"] == 1


def test_another_schema_is_named(tmp_path: Path) -> None:
    path = tmp_path / "newer.json"
    path.write_text('{"schema": 2, "results": []}')
    with pytest.raises(ConfigError, match=r"newer\.json is a report of schema 2; this version reads schema 1"):
        read_json(path, Report)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.json", b""),
        ("list.json", b"[]"),
        ("fields.json", b'{"schema": 1, "runs": []}'),
        ("latin.json", b'{"schema": 1, "environment": {"a": "\xff"}, "options": {}, "runs": []}'),
        ("plain.json.gz", b'{"schema": 1}'),
        ("cut.json.gz", gzip.compress(b'{"schema": 1}', mtime=0)[:-4]),
        ("damaged.json.gz", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 30),
    ],
)
def test_anything_else_is_refused_with_its_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=f"{name} is not a report of coatcheck bench"):
        read_json(tmp_path / name, Report)


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json is not a report"):
        read_json(tmp_path / "nowhere.json", Report)
