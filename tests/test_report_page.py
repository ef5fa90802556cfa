"""The page: self-contained, escaped, well-formed; figures that share one page."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from subspan.report import Page, Stopwatch, figures, style, visible

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Checker(HTMLParser):
    """Collects ids and outside references; fails on tags that do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.outside, self.tags = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action") and not value.startswith(
                ("#", "data:")
            ):
                self.outside.append(value)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def checked(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    assert checker.outside == []
    assert len(checker.ids) == len(set(checker.ids))
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    return checker


def drawn(tmp_path, name):
    x = np.arange(6)
    line = figures.Line("all tokens", x, x * 2.0, "all")
    made = figures.curves([figures.Panel("a", [line])], xlabel="layer", ylabel="rank")
    return style.save(made, tmp_path, name)


def test_page_with_two_figures_is_self_contained(tmp_path):
    page = Page("Title <&>", "sub")
    page.verdict([["First.", "Second."], ["Third."]])
    page.cards([("1", "<b>", "x")])
    page.section("A section")
    page.figure(drawn(tmp_path, "one"), "first")
    page.figure(drawn(tmp_path, "two"), "second", closed="more")
    page.table(["a", "<script>"], [[1, "</td><script>alert(1)</script>"], [None, 2.5]], caption="c")
    page.definitions([("k", "v & w")])
    path = tmp_path / "report.html"
    page.write(path)
    html = path.read_text("utf-8")
    checker = checked(html)
    assert checker.tags.count("script") == 1  # ours; the one in the table is text
    assert checker.tags.count("svg") == 2
    assert "&lt;script&gt;alert(1)" in html
    assert "<h1>Title &lt;&amp;&gt;</h1>" in html
    assert "prefers-color-scheme:dark" in html


def test_figures_on_disk_are_whole_and_inline_ones_follow_the_theme(tmp_path):
    inline = drawn(tmp_path, "one")
    assert inline.startswith("<svg")
    assert "var(--ink)" in inline
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    on_disk = (tmp_path / "one.svg").read_text()
    assert on_disk.startswith("<?xml")
    assert "var(" not in on_disk
    assert "rank" in inline  # text stays text


def test_equal_figures_give_equal_files(tmp_path):
    (tmp_path / "b").mkdir()
    assert drawn(tmp_path, "one") == drawn(tmp_path / "b", "one")
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"one{suffix}").read_bytes() == (
            tmp_path / f"b/one{suffix}"
        ).read_bytes()


def test_figures_leave_global_settings_alone(tmp_path):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    drawn(tmp_path, "one")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a\u00b7b"),
        ("\n\t", "\u21b5\u21e5"),
        ("\x00\x1b[31m", "\u2400\u241b[31m"),
        ("\u202eevil", "\u27e8U+202E\u27e9evil"),
        ("x" * 99, "x" * 60 + "\u2026"),
        ("\ud800", "\u27e8U+D800\u27e9"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


def test_degenerate_figures_are_drawn(tmp_path):
    flat = np.zeros(4)
    one = figures.spectra_by_depth([("all", [("a", {3: flat})]), ("w", [("a", {3: flat + 1})])])
    assert "svg" in style.save(one, tmp_path, "a")
    grid = figures.spectrum_grid([figures.Panel("0", [figures.Line("x", flat, flat)])])
    assert "svg" in style.save(grid, tmp_path, "b")
    edges = np.geomspace(0.1, 10, 5)
    hist = figures.norm_histograms([("a", [2], edges, np.array([[0, 3, 1, 0]]))], threshold=5)
    assert "svg" in style.save(hist, tmp_path, "c")
    heat = figures.heatmaps(
        [("k", np.array([[1.0, np.nan]]))],
        x_names=["0", "1"], y_names=["0"], xlabel="layer", ylabel="head", label="dims",
    )  # fmt: skip
    assert "svg" in style.save(heat, tmp_path, "d")


def test_stopwatch_adds_up():
    watch = Stopwatch()
    for _ in range(2):
        with watch.part("a"):
            pass
    watch.add("b", 1.5)
    assert watch.seconds["b"] == 1.5
    assert 0 <= watch.seconds["a"] < 1
