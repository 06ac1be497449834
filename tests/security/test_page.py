"""The report under hostile names: every text of every table is markup that would run, and none of it does."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from slideloom.artefacts.tables import write_table
from slideloom.reports.html import render_report
from slideloom.reports.overlays import Pictures, draw_overlays
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.reports.standalone import write_figures
from slideloom.slides.tables import ClassTable
from tests.reports import test_page as full_page
from tests.reports.chromium import chromium, find_chromium
from tests.reports.conftest import Cohort, blobs, worsen

#: Ends every element and text that a name may stand in, and begins what would run.
ATTACK = (
    "'\"></td></title></style></script></svg></textarea><!--><script>window.pwned=1</script>"
    '<img src=x onerror=window.pwned=2><svg onload=window.pwned=3><a href="javascript:window.pwned=4">]]></a>'
    "{{ 7 * 7 }}{% raw %}\u202e\u2028&lt;"
)
#: Words that the program chooses, and looks up: nobody else's text ever stands in these columns.
OWN = {"role", "metric", "averaging", "of", "by", "scope", "stage", "image", "input", "mode", "device"}
N_FEW = 4
CLASSES = ClassTable((1, 2), (f"one{ATTACK}", f"two{ATTACK}"), ((200, 10, 10), (10, 200, 10)), ((), ()))


def attacked(value: str | None) -> str | None:
    """The same name in every table, so that rows still meet."""
    return value and value + ATTACK


def hostile_tables() -> dict[str, pa.Table]:
    """Every report table, of few experiments and slides, every free text an attack."""
    found = {}
    with pytest.MonkeyPatch.context() as fewer:
        fewer.setattr(full_page, "EXPERIMENTS", full_page.EXPERIMENTS[:N_FEW])
        fewer.setattr(full_page, "SLIDES", full_page.SLIDES[:N_FEW])
        fewer.setattr(full_page, "N_EXPERIMENTS", N_FEW)
        fewer.setattr(full_page, "N_SLIDES", N_FEW)
        tables = full_page.tables()
    for name, table in tables.items():
        columns: dict[str, Any] = {}
        for column in table.column_names:
            values = table[column]
            if pa.types.is_string(values.type) and column not in OWN:
                values = pa.array([attacked(value) for value in values.to_pylist()], pa.string())
            columns[column] = values
        found[name] = pa.table(columns)
    return found


def hostile(value: Any) -> Any:
    """A record of pictures whose every text that is no picture and no path is an attack."""
    if isinstance(value, str):
        drawn = value.startswith("data:") or re.fullmatch(r"[MLZHVmlzhv\d .,-]*", value)
        return value if drawn else value + ATTACK
    if isinstance(value, tuple):
        return tuple(hostile(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {"kind", "state"}  # chosen by the program, and classes of its style
        given = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.init}
        return dataclasses.replace(value, **{name: hostile(item) for name, item in given.items() if name not in own})
    return value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tables."""
    folder = tmp_path_factory.mktemp("hostile")
    for name, table in hostile_tables().items():
        write_table(REPORT_TABLES[name], table, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    """Of a small slide, its names replaced."""
    rng = np.random.default_rng(3)
    cohort = Cohort(tmp_path_factory.mktemp("cohort"))
    image, labels, classes = blobs(rng)
    cohort.predict("experiment_00", cohort.add_slide("s0", image, labels, classes), *worsen(rng, labels, classes))
    drawn = draw_overlays(cohort.sources, cohort.classes)
    assert drawn.places
    assert drawn.slides
    changed = hostile(drawn)
    assert isinstance(changed, Pictures)
    return changed


@pytest.fixture(scope="module")
def page(place: Path, pictures: Pictures) -> Path:
    written = place / "report.html"
    render_report(
        place,
        written,
        study=f"study{ATTACK}",
        classes=CLASSES,
        experiments={f"experiment_{number:02}{ATTACK}": f"told{ATTACK}" for number in range(N_FEW)},
        overlays=pictures,
        n_slides=3,
        config_text=f"study: {ATTACK}",
        versions={f"program{ATTACK}": f"1{ATTACK}"},
    )
    return written


class Elements(HTMLParser):
    """Every element of a page with its attributes, every text, the scripts apart."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.comments: list[str] = []
        self.words = ""
        self._in = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag in ("script", "style"):
            self._in = tag
            (self.scripts if tag == "script" else self.styles).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag == self._in:
            self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in:
            (self.scripts if self._in == "script" else self.styles)[-1] += data
        else:
            self.words += data

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)


def test_nothing_of_a_name_becomes_markup(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = Elements(text)
    assert len(found.scripts) == 2
    assert "pwned" not in "".join(found.scripts)
    assert "pwned" not in "".join(found.styles)
    assert found.comments == []
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"img", "iframe", "object", "embed", "base", "form", "link", "textarea"}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("href", "src", "xlink:href", "action"):
            value = attributes.get(name, "data:image/")
            assert value.startswith(("#", "data:image/")), (tag, name, value)
        assert "pwned" not in attributes.get("style", "") + attributes.get("class", "") + attributes.get("id", "")
    # What is not markup is text: it is all there, as it was written, in cells, headings, charts and attributes.
    assert found.words.count(ATTACK) > 100
    assert f"study{ATTACK}" in found.words
    assert any(ATTACK in value for _, attributes in found.elements for value in attributes.values())
    for words in ("experiment_00", "slide_001", "lost_7", "one", "program", "told"):
        assert words + ATTACK in found.words, words
    assert "49" not in re.findall(r"\]\]></a>(.{0,9})", found.words), "a name is no template"


def test_the_policy_lets_the_pages_own_scripts_run_and_no_other(page: Path) -> None:
    found = Elements(page.read_text(encoding="utf-8"))
    (policy,) = [a["content"] for tag, a in found.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    digests = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in found.scripts]
    assert sorted(rules["script-src"]) == sorted(digests)
    assert rules["default-src"] == ["'none'"]
    assert rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert rules["img-src"] == ["data:"]


def test_figures_are_drawings_and_nothing_else(place: Path, tmp_path: Path) -> None:
    names = {f"experiment_{number:02}{ATTACK}": "told" for number in range(N_FEW)}
    written = write_figures(place, tmp_path, study=f"study{ATTACK}", classes=CLASSES, experiments=list(names))
    words = ""
    for figure in written:
        root = ElementTree.fromstring(figure.read_text(encoding="utf-8"))
        for element in root.iter():
            tag = element.tag.split("}")[1]
            assert tag not in ("script", "foreignObject", "image", "a", "use"), figure.name
            assert not [name for name in element.attrib if name.lower().startswith("on") or "href" in name], figure.name
            words += element.text or ""
            if tag == "style":
                assert "pwned" not in (element.text or "")
    assert words.count("pwned") > 10


def test_a_real_browser_runs_none_of_it(page: Path, tmp_path: Path) -> None:
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium or Chrome on the PATH: the page was not opened")
    forced = page.with_name("forced.html")
    injected = "<script>window.pwned=1</script><div onclick='window.pwned=2' id=bait>x</div></main>"
    forced.write_text(page.read_text(encoding="utf-8").replace("</main>", injected), encoding="utf-8")
    with chromium(program, tmp_path / "profile") as browser:
        with browser.open(page) as tab:
            assert tab.value("typeof window.pwned") == "undefined"
            assert tab.value("document.title").startswith("study'\"></td>")
            assert tab.value("document.scripts.length") == 2
            assert tab.value("document.querySelectorAll('th.sort').length") > 10, "the page's own script ran"
            assert tab.problems == []
            assert [one for one in tab.requests if not one.startswith("data:image/")] == [page.as_uri()]
        # Were a name to become markup one day, the policy would still stop it.
        with browser.open(forced) as tab:
            tab.value("document.getElementById('bait').click()")
            assert tab.value("typeof window.pwned") == "undefined"
            assert any("Content Security Policy" in problem for problem in tab.problems)


def test_the_attack_would_work() -> None:
    """Were it not escaped: each part of it is markup to the parser."""
    found = Elements(f"<p>{ATTACK}</p>")
    assert len(found.scripts) == 1
    assert {"img", "svg", "a"} <= {tag for tag, _ in found.elements}
    assert html.escape(ATTACK) != ATTACK
