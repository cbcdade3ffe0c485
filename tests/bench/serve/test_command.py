"""The command line: two servers, a saved one, files, and mistakes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from coatcheck.bench.serve.config import Load
from coatcheck.bench.serve.page import html
from coatcheck.bench.serve.result import Peak, Report, Run, Tail
from coatcheck.bench.serve.rows import Server, notes, problems, ratios, rows, servers_of
from coatcheck.bench.serve.table import table
from coatcheck.bench.support.files import read_json
from coatcheck.cli import app
from coatcheck.errors import ConfigError
from tests.bench.engine.test_page import Page
from tests.support.fake_openai import Behaviour, FakeServer

HOSTILE = "<script>alert(1)</script> [red]"
SMALL = ["--clients", "2", "--image", "112", "--output-tokens", "4", "--ramp", "0.2", "--window", "1", "--probe", "0.2"]


def run_made(contender: str, number: int, rate: float, **more: object) -> Run:
    run = Run(
        contender, number, None, 2, 1, 112, 4, rate, Tail(100 / rate, 200 / rate), Tail(10, 20), Peak(1, 2, 30), None,
        Peak(1, 1, 1), {}, 40, 40,
        {"sent_ms": [1.0, 5.0], "latency_ms": [100.0, 110.0], "ttft_ms": [10.0, None], "tokens": [4, 4],
         "text_gap_ms": [1.0, 30.0], "text_gap_at_ms": [5.0, 50.0], "probe_ms": [], "probe_at_ms": [],
         "health_ms": [1.0], "health_at_ms": [3.0]},
        {"notes": [], "load_cpu_percent": 3.0, "observer_cpu_percent": 1.0, "load_lag_ms": 1.0},
    )  # fmt: skip
    return msgspec.structs.replace(run, **more)


def report_of(*runs: Run) -> Report:
    return Report(1, {"cores": 2}, {**Load(side=112).as_json(), "rounds": 2, "servers": {"a": "u"}}, list(runs))


RUNS = [run_made("a", 1, 10.0), run_made("b", 1, 20.0), run_made("b", 2, 15.0), run_made("a", 2, 5.0)]


def test_ratios_are_of_rounds_of_one_number() -> None:
    a, b = servers_of(RUNS)
    assert ratios(a, b, lambda run: run.requests_per_s) == [2.0, 3.0]
    found = dict(rows([a, b]))
    assert found["image requests/s"][1] == ("17.5 [15.0–20.0]", "× 2.50 [2.00–3.00]")
    assert found["image requests/s"][0] == ("7.50 [5.00–10.0]", "")
    assert "text probe p50, ms" not in found
    saved = Server("a (saved)", a.runs, saved=True)
    assert sorted(ratios(saved, b, lambda run: run.requests_per_s)) == [1.5, 2.0, 3.0, 4.0]


def test_problems_and_notes_name_the_server() -> None:
    bad = run_made("b", 3, 1.0, errors={"500: x": 3}, tokens_received=10)
    hot = run_made("c", 1, 1.0, extra={"load_cpu_percent": 95.0, "tokens_counted_by": "chunks", "notes": ["slow"]})
    assert problems([*RUNS, bad, bad]) == ["b: 6 × 500: x"]
    said = notes([*RUNS, bad, hot])
    assert [line.partition(":")[0] for line in said] == ["b", "c", "c", "c, round 1"]
    assert "90 tokens received where 120 were asked for" in said[0]


def test_the_page_stands_alone_and_runs_nothing() -> None:
    source = html(report_of(*RUNS, run_made(HOSTILE, 1, 3.0, errors={HOSTILE: 2})), [run_made("before", 1, 4.0)])
    page = Page(source)
    assert page.tags.count("svg") == page.tags.count("figcaption") == 4
    assert "<script" not in source and not {"link", "img", "iframe"} & set(page.tags)
    assert all(link.startswith("#") for link in page.links) and len(page.ids) == len(set(page.ids))
    assert any(HOSTILE in text for text in page.text["li"])
    assert {"before (saved)", "a", "b", HOSTILE} <= set(page.text["th"])
    assert html(report_of(*RUNS)) == html(report_of(*RUNS))


def test_a_page_of_nothing_that_ended() -> None:
    nothing = run_made("a", 1, 1.0)
    empty: dict[str, list[float | None]] = {name: [] for name in nothing.samples}
    changed = msgspec.structs.replace(nothing, samples=empty, requests_per_s=0.0, latency_ms=None, text_gap_ms=None)
    assert Page(html(report_of(changed))).tags.count("svg") == 4


@pytest.mark.timeout(90)  # four windows
def test_two_servers_then_one_against_what_was_saved(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("r.json.gz", "r.html", "a.json", "b.html")}
    with FakeServer(Behaviour(first_s=0.2)) as slow, FakeServer(Behaviour(first_s=0.01)) as fast:
        line = ["bench", "serve", "--compare", f"slow={slow.url}, fast={fast.url}/v1", "--rounds", "1", *SMALL]
        done = CliRunner().invoke(app, [*line, "--json", str(files["r.json.gz"]), "--html", str(files["r.html"])])
        assert done.exit_code == 0, done.output
        report = read_json(files["r.json.gz"], Report)
        assert [run.contender for run in report.runs] == ["slow", "fast"]
        assert report.runs[1].requests_per_s > 2 * report.runs[0].requests_per_s
        assert "to slow" in done.output and "× " in done.output
        assert Page(files["r.html"].read_text()).tags.count("svg") == 4
        pictures = [
            part["image_url"]["url"] for server in (slow, fast) for body in server.bodies
            for part in body["messages"][0]["content"][:-1]
        ]  # fmt: skip
        assert len(set(pictures)) == len(pictures)

        single = ["bench", "serve", "--rounds", "1", *SMALL, "--url"]
        assert CliRunner().invoke(app, [*single, slow.url, "--save", str(files["a.json"])]).exit_code == 0
        done = CliRunner().invoke(
            app, [*single, fast.url, "--against", str(files["a.json"]), "--html", str(files["b.html"])]
        )
        assert done.exit_code == 0, done.output
        assert "to server (saved)" in " ".join(done.output.split())
        assert "server (saved)" in files["b.html"].read_text()
        done = CliRunner().invoke(app, [*single, fast.url, "--against", str(files["a.json"]), "--clients", "3"])
        assert isinstance(done.exception, ConfigError) and "clients 2, now 3" in str(done.exception)


def test_failed_requests_are_shown_and_exit_1() -> None:
    with FakeServer(Behaviour(fails_every=2)) as server:
        done = CliRunner().invoke(app, ["bench", "serve", "--url", server.url, "--rounds", "1", *SMALL])
    assert done.exit_code == 1, done.output
    assert "× 500: out of memory" in done.output and "image requests/s" in done.output


def test_one_that_dies_between_rounds_is_listed_and_the_other_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from coatcheck.bench.serve import rounds

    async def measure(url: str, load: Load, *, contender: str, round: int, **_: object) -> Run:
        if contender == "b" and round == 2:
            raise ConfigError("gone")
        return run_made(contender, round, 1.0)

    monkeypatch.setattr(rounds, "measure", measure)
    with FakeServer() as server:
        line = ["bench", "serve", "--compare", f"a={server.url},b={server.url}", "--rounds", "2", *SMALL]
        done = CliRunner().invoke(app, line)
    assert done.exit_code == 1 and "b: 1 × gone" in done.output


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--url, --compare"),
        (["--url", "x", "--compare", "a=y"], "--url, --compare"),
        (["--url", "ftp://x"], "--url"),
        (["--compare", "http://x"], "--compare"),
        (["--compare", "a=http://x,a=http://y"], "--compare"),
        (["--url", "http://127.0.0.1:9"], "cannot be reached"),
        (["--url", "http://x", "--image", "big"], "--image"),
        (["--url", "http://x", "--image", "5"], "--image"),
        (["--url", "http://x", "--clients", "0"], "--clients"),
        (["--url", "http://x", "--output-tokens", "0"], "--output-tokens"),
        (["--url", "http://x", "--window", "0"], "--window"),
        (["--url", "http://x", "--rounds", "0"], "--rounds"),
        (["--url", "http://x", "--format", "gif"], "--format"),
        (["--url", "http://x", "--video", "made", "--images", "1"], "--video"),
        (["--url", "http://x", "--video", "/nowhere"], "--video"),
        (["--url", "http://x", "--directory", "/nowhere"], "--directory"),
        (["--url", "http://x", "--against", "/nowhere"], "/nowhere"),
        (["--url", "http://x", "--json", "/nowhere/at/all.json"], "--json"),
    ],
)
def test_a_mistake_is_named(options: list[str], named: str) -> None:
    done = CliRunner().invoke(app, ["bench", "serve", *options])
    assert isinstance(done.exception, ConfigError), done.output
    assert named in str(done.exception)


def test_a_report_of_another_kind_is_no_saved_one(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"schema": 1, "environment": {}, "options": {}, "runs": [{"strategy": "x"}]}')
    done = CliRunner().invoke(app, ["bench", "serve", "--url", "http://x", "--against", str(tmp_path / "other.json")])
    assert isinstance(done.exception, ConfigError) and "other.json" in str(done.exception)


def test_the_table_has_a_column_of_ratios() -> None:
    made = table(servers_of(RUNS))
    assert [str(column.header) for column in made.columns] == ["", "a", "b", "to a"]
