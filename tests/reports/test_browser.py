"""The page in a real Chromium: it is seen, complains of nothing, loads nothing, sorts, toggles and prints."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from tests.reports.chromium import Browser, Tab, chromium, find_chromium
from tests.reports.conftest import GRID_CLASSES, Cohort, blobs, worsen

from slideloom.artefacts.tables import read_table, write_table
from slideloom.reports.gather import gather_reports
from slideloom.reports.html import render_report
from slideloom.reports.overlays import draw_overlays
from slideloom.reports.schemas import REPORT_TABLES
from slideloom.slides.tables import ClassTable

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on the PATH: the page was not looked at")
Pages = dict[str, Path]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for all tests of this module."""
    assert PROGRAM is not None
    with chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as running:
        yield running


def page_of(cohort: Cohort, place: Path, classes: ClassTable) -> Path:
    """Gather a cohort's tables, draw its pictures and write its page."""
    runs = list(cohort.runs.values())
    found = gather_reports("ki67 <b>", runs, cohort.rows, cohort.records, cohort.benchmarks, cohort.paths.root, place)
    told = {name: f"encoder <i>{name}</i>" for name in cohort.runs}
    sources = []
    for source in cohort.sources:
        slide, tiles = source.row.slide_id, cohort.paths.metrics(source.experiment, "0", source.row.slide_id)
        scored = slide in (cohort.runs[source.experiment].metrics or {})
        pictured = replace(source, thumbnail=cohort.paths.thumbnail(slide))
        sources.append(replace(pictured, tiles=tiles / "tiles.parquet" if scored else None))
    overlays = draw_overlays(sources, classes, slides=found["slides"].to_pylist())
    return render(place, classes, experiments=told, overlays=overlays, n_slides=len(cohort.rows))


def render(place: Path, classes: ClassTable, **more: Any) -> Path:
    """Write the page beside its tables."""
    page = place / "report.html"
    render_report(place, page, study="ki67 <b>", classes=classes, versions={"slideloom": "0"}, config_text="a", **more)
    return page


def hundred_by_twenty(many: Path, place: Path) -> Path:
    """Tables of 20 experiments and 104 slides and more: those of fewer slides, again and again under other names."""
    experiments = read_table(REPORT_TABLES["experiments"], many / "experiments.parquet")["experiment"].unique()[-20:]
    for name, schema in REPORT_TABLES.items():
        table = read_table(schema, many / f"{name}.parquet")
        for column in {"experiment", "experiment_a", "experiment_b"} & set(table.column_names):
            table = table.filter(pc.is_in(table[column], experiments))
        if "slide_id" in schema.key and table.num_rows:
            place_of, ids = table.column_names.index("slide_id"), table["slide_id"]
            copies = [pc.binary_join_element_wise(ids, f"{number:02}", "_") for number in range(13)]
            table = pa.concat_tables([table.set_column(place_of, "slide_id", own) for own in copies]).combine_chunks()
        write_table(schema, table, place / f"{name}.parquet")
    return place


@pytest.fixture(scope="module")
def pages(cohort: Cohort, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Pages:
    """Pages of studies of every size."""
    root = tmp_path_factory.mktemp("pages")
    found = {"few": page_of(cohort, root / "few", cohort.classes)}

    gather_reports("none", [], [], [], [], root, root / "zero")
    found["zero"] = render(root / "zero", ClassTable(), n_slides=0)

    rng = np.random.default_rng(8)
    one = Cohort(root / "one_slide")
    image, labels, classes = blobs(rng)
    row = one.add_slide("s0", image, labels, classes)
    one.predict("alone", row, *worsen(rng, labels, classes))
    one.predict("other_program", row, *worsen(rng, labels, classes), external=True)
    one.split({"s0": "test"})
    found["one"] = page_of(one, root / "one", one.classes)

    lost = Cohort(root / "lost_slides")
    broken = {"status": "failed", "stage": "tissue", "code": "no_tissue", "message": "x <b>: nothing", "hint": "Look"}
    lost.record("tissue", "", {f"s{number}": broken for number in range(3)})
    found["failed"] = page_of(lost, root / "failed", ClassTable())

    # Nuclei without classes, on both sides, and a study without a class table.
    bare = Cohort(root / "bare_slides", classes=ClassTable())
    for name in ("s0", "s1"):
        image, labels, classes = blobs(rng)
        found_labels, _ = worsen(rng, labels, classes)
        row = bare.add_slide(name, image, labels, None)
        bare.predict("plain", row, found_labels, np.zeros_like(found_labels, np.uint8))
    bare.split({"s0": "test", "s1": "test"})
    found["classless"] = page_of(bare, root / "classless", ClassTable())

    found["many"] = render(hundred_by_twenty(many, root / "many"), GRID_CLASSES, n_slides=104)
    return found


def colours(tab: Tab) -> int:
    """Different colours of what the window shows."""
    return len(tab.picture(whole=False).getcolors(1 << 24) or [])


def lightness(tab: Tab) -> float:
    """Mean of what the window shows, 0 to 255."""
    return float(np.asarray(tab.picture(whole=False).convert("L")).mean())


def open_all(tab: Tab) -> None:
    """Unfold every folded part."""
    tab.value("document.querySelectorAll('details').forEach(one => { one.open = true; })")


KINDS = ("zero", "one", "few", "many", "failed", "classless")


@pytest.mark.parametrize("kind", KINDS)
def test_it_shows_and_complains_of_nothing(kind: str, pages: Pages, browser: Browser) -> None:
    with browser.open(pages[kind]) as tab:
        assert tab.value("document.title") == "ki67 <b> · Slideloom report"
        assert colours(tab) > 50
        # All of it: what is folded away may hold broken charts, and no part may be wider than the window.
        open_all(tab)
        assert kind == "many" or np.asarray(tab.picture()).std() > 5
        assert tab.value("document.documentElement.scrollWidth") <= 1300
        headings = tab.value("[...document.querySelectorAll('section h2')].filter(h => h.checkVisibility()).length")
        assert headings == tab.value("document.querySelectorAll('section').length") >= 3
        assert tab.problems == []
        assert tab.requests == [pages[kind].as_uri(), *(one for one in tab.requests[1:] if one.startswith("data:"))]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_unique_and_links_lead_to_what_is_shown(kind: str, pages: Pages, browser: Browser) -> None:
    with browser.open(pages[kind]) as tab:
        ids = tab.value("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(ids) == len(set(ids))
        for link in tab.value("[...document.querySelectorAll('nav a')].map(e => e.getAttribute('href'))"):
            assert tab.value(f"document.querySelector({link!r}).checkVisibility()"), link
        used = tab.value("[...document.querySelectorAll('use')].map(e => e.getAttribute('href'))")
        assert {link.removeprefix("#") for link in used} <= set(ids)


def test_a_page_that_loads_something_would_be_found_out(pages: Pages, browser: Browser, tmp_path: Path) -> None:
    """The browser's own account, tried: a picture from elsewhere and a script that is not the page's are refused."""
    page = tmp_path / "report.html"
    text = pages["one"].read_text(encoding="utf-8")
    outside = "<img src='https://example.org/a.png'><script>undefined_name()</script></body>"
    page.write_text(text.replace("</body>", outside), encoding="utf-8")
    with browser.open(page) as tab:
        told = [problem for problem in tab.problems if "Content Security Policy" in problem]
        assert any("inline script" in problem for problem in told), tab.problems
        assert any("img-src" in problem for problem in told), tab.problems
        assert not any("undefined_name is not defined" in problem for problem in tab.problems), "it ran"
        assert any("example.org" in request for request in tab.requests)


#: Every column of a table clicked twice: what it says of itself, its own cells, and the rows, after each click.
_SORTED = """(t => { const heads = [...t.tHead.rows[0].cells], state = column => {
  const rows = [...t.tBodies[0].rows];
  return {sort: heads.map(h => h.getAttribute('aria-sort')), rows: rows.map(r => r.textContent),
    keys: rows.map(r => r.cells[column].dataset.v ?? r.cells[column].textContent.trim())}; };
return heads.map((head, column) => ({name: head.textContent.trim(), before: state(column),
  after: [0, 1].map(() => { head.click(); return state(column); })})); })"""


def in_order(keys: list[str]) -> Callable[[str], Any]:
    """What a column is to be sorted by: numbers where all are numbers."""
    told = [key for key in keys if key not in ("", "–")]
    try:
        return float if all(math.isfinite(float(key)) for key in told) else str.lower
    except ValueError:
        return str.lower


def test_every_column_of_every_table_sorts_both_ways(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["few"]) as tab:
        open_all(tab)
        n_tables = tab.value("document.querySelectorAll('table.sortable').length")
        assert n_tables >= 3
        for table in range(n_tables):
            for column, found in enumerate(
                tab.value(f"{_SORTED}(document.querySelectorAll('table.sortable')[{table}])")
            ):
                seen = set()
                for after in found["after"]:
                    assert sorted(after["rows"]) == sorted(found["before"]["rows"]), "rows are moved whole"
                    way = after["sort"][column]
                    assert [one for one in after["sort"] if one] == [way]
                    seen.add(way)
                    keys = after["keys"]
                    told = [key for key in keys if key not in ("", "–")]
                    assert keys[len(told) :] == [key for key in keys if key in ("", "–")], "undefined values come last"
                    by = in_order(keys)
                    if by is str.lower and any(re.search(r"\d", key) for key in told):
                        continue  # names with numbers in them go by the numbers: "s10" after "s9"
                    values = [by(key) for key in told]
                    for one, two in pairwise(values if way == "ascending" else values[::-1]):
                        assert one <= two, (found["name"], one, two)
                assert seen == {"ascending", "descending"}
        assert tab.problems == []


def test_headings_sort_by_mouse_and_by_key(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["few"]) as tab:
        heads = tab.value("[...document.querySelectorAll('#slide-table th')].map(h => h.textContent.trim())")
        column = heads.index("PQ")
        script = (
            f"[...document.querySelectorAll('#slide-table tbody tr')].map(r => Number(r.cells[{column}].dataset.v))"
        )
        head = f"#slide-table th:nth-child({column + 1})"
        tab.click(head)
        values = tab.value(script)
        assert values == sorted(values, reverse=True)
        assert len(set(values)) > 4
        tab.value(f"(head => (head.querySelector('button') ?? head).focus())(document.querySelector({head!r}))")
        assert tab.value(f"document.querySelector({head!r}).contains(document.activeElement)")
        for key in ("Enter", "Space"):
            tab.press(key)
            values = tab.value(script)
            assert values == sorted(values, reverse=key == "Space")


def test_slides_are_found_by_words(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["few"]) as tab:
        shown = "[...document.querySelectorAll('#slide-table tbody tr')].filter(r => r.checkVisibility()).length"
        whole = tab.value(shown)
        tab.value("document.getElementById('find').focus()")
        tab.call("Input.insertText", text="S2 poor")
        assert (whole, tab.value(shown)) == (8, 1)


def test_figures_are_averaged_as_chosen(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["few"]) as tab:
        ways = tab.value("[...document.getElementById('averaging').options].map(o => o.value)")
        assert {"slide", "patient", "pooled", "image", "tissue"} <= set(ways)
        shown = "[...document.querySelectorAll('#summary-table tbody tr')].filter(r => r.checkVisibility())"
        seen = {}
        for number, way in enumerate(ways):
            tab.value(f"{{ const c = document.getElementById('averaging'); c.selectedIndex = {number};"
                      "c.dispatchEvent(new Event('change', {bubbles: true})); }")  # fmt: skip
            seen[way] = tab.value(f"{shown}.map(r => [r.cells[0].textContent, r.cells[1].textContent, r.textContent])")
            assert {line[1] for line in seen[way]} == {way}
            assert len({line[0] for line in seen[way]}) == len(seen[way])
        assert [line[0] for line in seen["slide"]] == [line[0] for line in seen["patient"]]
        assert seen["slide"] != seen["patient"]


LAYERS = ("image", "truth", "prediction", "errors")


def shot(tab: Tab, selector: str) -> np.ndarray:
    """What the window shows of an element, (h, w, 3)."""
    x, y, width, height = (round(value) for value in tab.box(selector))
    tab.point(2, 2)  # away, so that nothing is lit up
    return np.asarray(tab.picture(whole=False))[y : y + height, x : x + width].astype(int)


def test_pictures_show_their_layers_one_by_one(pages: Pages, browser: Browser) -> None:
    """Every switch, worked from the keyboard, changes the pixels as its layer should."""
    first = "#overlays .shot:not(.first) svg"
    with browser.open(pages["few"]) as tab:
        assert tab.value(f"document.querySelectorAll({first!r}).length") > 1

        def show(*wanted: str) -> np.ndarray:
            for layer in LAYERS:
                button = f"#overlays button[data-layer={layer}]"
                pressed = f"document.querySelector({button!r}).getAttribute('aria-pressed')"
                if (tab.value(pressed) == "true") != (layer in wanted):
                    tab.value(f"document.querySelector({button!r}).focus()")
                    tab.press("Space")
                assert tab.value(pressed) == str(layer in wanted).lower()
            return shot(tab, first)

        everything, nothing = show(*LAYERS), show()
        # Corners are round; a scale bar or a caption may stay.
        assert (
            np.median(np.ptp(nothing[8:-8, 8:-8].reshape(-1, 3), axis=0)) < 40 or nothing.std() < everything.std() / 2
        )
        alone = {layer: show(layer) for layer in LAYERS}
        changed = {layer: (abs(seen - nothing).max(axis=2) > 40).mean() for layer, seen in alone.items()}
        assert changed["image"] > 0.8, "the tissue fills its picture"
        for layer in ("truth", "prediction", "errors"):
            assert 0.002 < changed[layer] < 0.7, f"{layer}: {changed}"
        seen = [*alone.values(), everything]
        assert all((abs(one - two).max(axis=2) > 40).any() for k, one in enumerate(seen) for two in seen[:k])
        assert tab.problems == []


def test_whole_slides_show_the_nuclei_of_the_chosen_experiment(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["few"]) as tab:
        names = tab.value("[...document.getElementById('dots-of').options].map(o => o.text)")
        assert {"good", "poor"} <= set(names)
        # Where an experiment predicted it, a slide shows one layer of dots; "bare" is not one of the second's.
        script = "[...document.querySelectorAll('.slide')].map(s => [s.querySelector('figcaption b').textContent,"
        script += "[...s.querySelectorAll('.dots')].filter(d => getComputedStyle(d).display !== 'none').length])"
        tab.value("document.getElementById('dots-of').focus()")
        assert dict(tab.value(script))["bare"] == 1
        before = shot(tab, ".slide svg")
        tab.value("{ const c = document.getElementById('dots-of'); c.selectedIndex = 1;"
                  "c.dispatchEvent(new Event('change', {bubbles: true})); }")  # fmt: skip
        shown = dict(tab.value(script))
        assert shown.pop("bare") == 0
        assert set(shown.values()) == {1}
        assert (abs(shot(tab, ".slide svg") - before).max(axis=2) > 40).any()
        tab.click("#dots-tissue")
        assert (abs(shot(tab, ".slide svg") - before).max(axis=2) > 40).any()
        assert tab.problems == []


def test_curves_are_read_out_and_switched(pages: Pages, browser: Browser) -> None:
    figure = "#curves figure:has(svg[data-frame])"
    with browser.open(pages["few"]) as tab:
        told = f"document.querySelector({figure + ' .readout'!r}).textContent"
        drawn = f"document.querySelectorAll({figure + ' g.series'!r})"
        shown = f"[...{drawn}].filter(g => getComputedStyle(g).display !== 'none').map(g => g.dataset.name)"
        before, curves = tab.value(told), tab.value(shown)
        # The middle of a curve's own path, in pixels of the window.
        path = f"document.querySelector({figure + ' g.series path'!r})"
        tab.box(figure + " svg")
        script = "const at = p.getPointAtLength(p.getTotalLength() / 2).matrixTransform(p.getScreenCTM());"
        x, y = tab.value(f"(() => {{ const p = {path}; {script} return [at.x, at.y]; }})()")
        tab.point(x, y)
        by_mouse = tab.value(told)
        assert by_mouse != before
        numbers = re.findall(r"\d\.\d+", by_mouse)
        assert len(numbers) >= 2, by_mouse
        # The frame says where the unit square lies; what is read out is what is pointed at.
        left, top, size = map(float, tab.value(f"document.querySelector({figure + ' svg'!r}).dataset.frame").split())
        inside = tab.value(
            f"(() => {{ const s = document.querySelector({figure + ' svg'!r});"
            f"const at = new DOMPoint({x}, {y}).matrixTransform(s.getScreenCTM().inverse()); return [at.x, at.y]; }})()"
        )
        assert float(numbers[0]) == pytest.approx((inside[0] - left) / size, abs=0.08)
        assert float(numbers[1]) == pytest.approx(1 - (inside[1] - top) / size, abs=0.08)
        tab.value(f"document.querySelector({figure + ' svg'!r}).focus()")
        tab.press("ArrowRight")
        assert tab.value(told) not in (before, by_mouse)
        key = "#curves .keys button.toggle"
        name = tab.value(f"document.querySelector({key!r}).textContent")
        tab.click(key)
        assert tab.value(shown) == [curve for curve in curves if curve != name]
        assert name in curves
        tab.click(key)
        assert tab.value(shown) == curves
        assert tab.problems == []


def test_groups_of_columns_are_switched(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["few"]) as tab:
        script = ".filter(h => h.checkVisibility()).map(h => h.title || h.textContent)"
        shown = f"[...document.querySelectorAll('#slide-table th')]{script}"
        seen = []
        for choice in range(tab.value("document.querySelectorAll('input[name=slide-table-group]').length")):
            tab.click(f"fieldset[data-groups=slide-table] label:nth-of-type({choice + 1})")
            seen.append(tab.value(shown))
        *groups, everything = seen
        assert len(groups) >= 3
        fixed = set.intersection(*map(set, groups))
        assert {"slide", "role"} <= fixed
        assert set().union(*groups) == set(everything)
        own = [set(group) - fixed for group in groups]
        assert all(own)
        assert sum(map(len, own)) == len(everything) - len(fixed), "a figure stands in one group"


def test_dark_is_dark_and_both_can_be_read(pages: Pages, browser: Browser) -> None:
    """Contrast of text and ground by WCAG, for every kind of text that the page has."""
    with browser.open(pages["few"], height=2000) as tab:
        open_all(tab)
        seen = {}
        for dark in (False, True):
            tab.emulate(dark=dark)
            seen[dark] = lightness(tab)
            assert tab.pale() == [], f"dark: {dark}"
        assert seen[False] > 200
        assert seen[True] < 80
        assert tab.problems == []


def test_it_fits_a_telephone(pages: Pages, browser: Browser) -> None:
    for kind in ("few", "many"):
        with browser.open(pages[kind], width=390, height=844) as tab:
            open_all(tab)
            assert tab.value("document.documentElement.scrollWidth") <= 390, kind


@pytest.mark.parametrize("kind", ["few", "zero"])
def test_it_prints(kind: str, pages: Pages, browser: Browser) -> None:
    with browser.open(pages[kind], dark=True) as tab:
        paper = tab.pdf()
        assert paper.startswith(b"%PDF-")
        assert paper.rstrip().endswith(b"%%EOF")
        assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 1
        tab.emulate(dark=True, medium="print")
        # Paper is white, also for who likes the dark; what only works on a screen is gone.
        assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert lightness(tab) > 200
        assert not tab.value("document.querySelector('nav').checkVisibility()")
        assert tab.pale() == []
        assert tab.problems == []


def test_another_programs_labels_are_called_that(pages: Pages, browser: Browser) -> None:
    with browser.open(pages["one"]) as tab:
        lines = tab.value("[...document.querySelectorAll('#experiments tr')].map(r => r.textContent)")
        assert any("other_program" in line and "labels of another program" in line for line in lines)
        assert not any("alone" in line and "labels of another program" in line for line in lines)
        # Without a probability it has no curve.
        curves = tab.value("[...document.querySelectorAll('#curves g.series')].map(g => g.dataset.name)")
        assert "alone" in curves
        assert "other_program" not in curves


def test_a_large_page_is_bearable(pages: Pages, browser: Browser) -> None:
    """A hundred slides of twenty experiments: its size, how fast it opens, and how fast its largest table sorts."""
    assert pages["many"].stat().st_size < 20e6
    with browser.open(pages["many"]) as tab:
        assert tab.value("performance.getEntriesByType('navigation')[0].domComplete") < 10_000
        assert tab.value("document.querySelectorAll('#slide-table tbody tr').length") >= 2080
        assert tab.value("document.querySelectorAll('*').length") < 150_000
        open_all(tab)
        script = "const t = performance.now(); document.querySelectorAll('#slide-table th')[2].click();"
        assert tab.value(f"(() => {{ {script} return performance.now() - t; }})()") < 3000
