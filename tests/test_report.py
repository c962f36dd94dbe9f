"Tables and pages: one rule for a cell in three places, and nothing that is typed becomes a tag."

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markupsafe import Markup

from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.report import format_cell, html_table, link_html, markdown_table, page_html, text_table

EVIL = "<b>|\"'&\n<script>alert(1)</script>"


class Page(HTMLParser):
    "The tags of a page, with their attributes, and the text of each cell."

    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.cells = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data.strip()


@pytest.mark.parametrize(
    "value, text",
    [(0.12345, "0.123"), (1e-9, "1e-09"), (7, "7"), (True, "True"), (None, ""), ("a  b", "a  b")],
)
def test_a_cell(value, text):
    assert format_cell(value) == text


def test_a_table_has_all_columns():
    rows = [dict(a="x", b=0.12345), dict(a="y", c=None, d=2)]
    assert text_table(rows).splitlines() == ["a  b      c  d", "x  0.123", "y            2"]
    assert markdown_table(rows).splitlines() == [
        "| a | b | c | d |",
        "|---|---|---|---|",
        "| x | 0.123 |  |  |",
        "| y |  |  | 2 |",
    ]
    assert Page(html_table(rows)).cells == ["a", "b", "c", "d", "x", "0.123", "", "", "y", "", "", "2"]


def test_no_rows_make_no_table():
    assert text_table([]) == ""
    assert "<td" not in html_table([])


def test_three_tables_say_the_same():
    rows = [{"edit": "a blue star", "PSNR": 27.123456}, {"edit": EVIL, "PSNR": None}]
    text = " ".join(EVIL.split())
    assert text in text_table(rows)
    assert text.replace("|", "\\|") in markdown_table(rows)
    assert Page(html_table(rows)).cells == ["edit", "PSNR", "a blue star", "27.1", text, ""]


def test_a_row_is_one_line():
    rows = [{"a\nb": "two\nlines"}]
    assert len(markdown_table(rows).splitlines()) == 3
    assert len(text_table(rows).splitlines()) == 2


@pytest.mark.parametrize(
    "cells, is_numeric",
    [
        ([1, 2.5, None], True),
        (["98 %", "1.2 px", "-3.1 dB", "4 s"], True),
        (["0.41 ± 0.02", "-", "3.1 (24)", 1234567.0], True),
        (["1", "one"], False),
        (["e", "."], False),
        (["2024-05-01"], False),
    ],
)
def test_numbers_go_to_the_right(cells, is_numeric):
    rows = [{"x": cell} for cell in cells]
    dashes = markdown_table(rows, align_numbers=True).splitlines()[1]
    assert dashes == ("|---:|" if is_numeric else "|:---|")
    assert ('class="tav-number"' in html_table(rows)) is is_numeric


def test_links_lead_where_they_should():
    rows = [{"edit": "a"}, {"edit": "b"}]
    tags = Page(html_table(rows, links=['x" y.mp4', ""])).tags
    assert [attrs for tag, attrs in tags if tag == "a"] == [{"href": 'x" y.mp4'}]
    with pytest.raises(InputError, match="2 rows but 3 links"):
        html_table(rows, links=["1", "2", "3"])


def test_nothing_typed_becomes_a_tag():
    table = html_table([{EVIL: EVIL}], links=[EVIL], css_class=EVIL)
    page = Page(page_html(EVIL, [(EVIL, table)]))
    tags = {tag for tag, _ in page.tags}
    assert "b" not in tags
    assert "script" not in tags


def test_html_that_is_marked_stays():
    table = html_table([{"file": Markup("<code>{}</code>").format("a & b")}])
    assert "<code>a &amp; b</code>" in table


def test_a_link_holds_its_file_unless_it_is_large(tmp_path):
    file = tmp_path / 'a "b" & c.mp4'
    file.write_bytes(b"12345")
    tag, attrs = Page(link_html(file, "mp4")).tags[0]
    assert tag == "a"
    assert attrs == {"download": file.name, "href": "data:video/mp4;base64,MTIzNDU="}
    named = link_html(file, EVIL, most=4)
    assert [tag for tag, _ in Page(named).tags] == ["code"]


def test_a_page_is_whole_and_asks_nobody():
    page = page_html("A & B", [("One", "<p>1</p>"), ("Two", "<p>2</p>")])
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert "<title>A &amp; B</title>" in page
    assert page.count("<section>") == 2
    assert "<p>1</p>" in page
    assert "http" not in page
    assert "@import" not in page


def test_importing_is_light():
    code = "import sys, tune_a_video_nbs.report\n"
    code += "assert not {'torch', 'matplotlib', 'IPython', 'mediapy', 'pandas'} & set(sys.modules)"
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
