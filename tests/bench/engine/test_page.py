"""The page stands alone, shows what the report holds, and runs nothing of it."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from coatcheck.bench.engine.page import html, write_html
from coatcheck.bench.engine.result import Report, Run
from coatcheck.bench.engine.rows import rows
from coatcheck.bench.support.page import shown
from tests.bench.conftest import HOSTILE, failed_run, make_report, make_run

VOID = {"meta", "br", "link", "img", "input"}


class Page(HTMLParser):
    """Tags, links, text by tag; fails on what is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)


def test_one_file_that_loads_nothing(report: Report, tmp_path: Path) -> None:
    write_html(report, tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.tags.count("svg") == page.tags.count("figcaption") == 4
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert "@import" not in source and "url(http" not in source
    assert len(page.ids) == len(set(page.ids))


def test_the_table_has_every_cell(report: Report) -> None:
    page = Page(html(report))
    assert [of for of in page.text["th"] if of in dict(rows(report))] == [name for name, _ in rows(report)]
    assert page.text["td"] == [cell.partition(" [")[0] for _, cells in rows(report) for cell in cells]
    intervals = ["[" + cell.partition(" [")[2] for _, cells in rows(report) for cell in cells if " [" in cell]
    assert page.text["span"][1:] == intervals


def test_a_hostile_reason_is_text(report: Report) -> None:
    source = html(report)
    assert "<script" not in source
    (line,) = Page(source).text["li"]
    assert line == f"handle-inline, 2 ranks: 36 requests failed: {' '.join(HOSTILE.split())}"


def test_hostile_options_and_names_are_text() -> None:
    bad = "<b onclick='x'>&"
    report = Report(1, {bad: [bad]}, {"json": bad}, [msgspec.structs.replace(make_run("dict-inline"), strategy=bad)])
    page = Page(html(report))
    assert "b" not in page.tags
    assert page.text["dt"] == ["json", bad] and page.text["dd"] == [bad, bad]
    assert bad in page.text["th"]


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    made = html(report)
    for count in range(1, 6):  # memory is laid out differently each time
        kept = [object() for _ in range(1000 * count)]
        assert html(report) == made, len(kept)


def test_the_intervals_probability_is_that_of_the_rounds() -> None:
    for rounds, text in ((5, "of 5 rounds it holds"), (1, "")):
        source = html(make_report([make_run("dict-inline", rounds=rounds, requests=3)]))
        assert text in source
        assert ("94 %" in source) == (rounds == 5)
        assert ("probability" in source) == (rounds > 1)


@pytest.mark.parametrize("runs", [[make_run("dict-inline", tp=1)], [failed_run()]], ids=["one rank", "all failed"])
def test_pages_of_little(runs: list[Run]) -> None:
    assert Page(html(make_report(runs))).tags.count("svg") == 4


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "–"), ("", "–"), (True, "yes"), (False, "no"), (2, "2"), (0.1 + 0.2, "0.3"), ([1, 2.5], "1, 2.5")),
        *(({"python": "3.11", "cores": 2}, "python 3.11, cores 2"), ({}, "–"), ([], "–")),
    ],
)
def test_values_for_people(value: object, text: str) -> None:
    assert shown(value) == text
