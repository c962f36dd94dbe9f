"The book's pages, checked without Quarto: `make check-docs`'s checks, that each of them can fail, the filter, and the reference."

import copy
import importlib
import inspect
import json
import re
import shutil

import check_docs as docs
import pytest
import yaml
from filter import OURS, QUARTO, linked, marks, page, source
from make_api import defined, modules, pages, parameters, public
from make_figures import figures, figures_page

ROOT = docs.ROOT
INDEX = ROOT / "nbs/index.ipynb"


@pytest.mark.parametrize("path", docs.NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    problems = [str(p) for check in docs.NOTEBOOK_CHECKS for p in check(path, docs.load(path))]
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("check", docs.WHOLE_CHECKS, ids=lambda c: c.__name__)
def test_whole(check):
    problems = [str(p) for p in check()]
    assert not problems, "\n" + "\n".join(problems)


# A check that cannot fail is worth nothing: each fault below is put into a sound notebook, and the check must name its cell.


def md(text):
    return dict(cell_type="markdown", id="made", metadata={}, source=text.splitlines(keepends=True))


def py(text, *outputs):
    return dict(
        cell_type="code",
        id="made",
        metadata={},
        execution_count=None,
        source=text.splitlines(keepends=True),
        outputs=list(outputs),
    )


def shown(**data):
    return dict(
        output_type="display_data", metadata={}, data={k.replace("_", "/"): v for k, v in data.items()}
    )


def image():
    return shown(image_png="iVBO")


CAPTIONED = '#| fig-cap: "It rises."\n#| fig-alt: "A line."\n'
FAULTS = [
    (docs.check_title, md("# Again")),
    (docs.check_headings, md("## Fine\n\n#### Too deep")),
    (docs.check_headings, md("## Twice\n\n## Twice")),
    (docs.check_links, md("[x](99_none.ipynb)")),
    (docs.check_links, md("[x](01_sprites.ipynb#no-such-heading)")),
    (docs.check_links, md("[x](http://arxiv.org/abs/2212.11565)")),
    (docs.check_links, md("[x](https://arxiv)")),
    (docs.check_links, md("[x](https://github.com/somebody/tune_a_video_nbs)")),
    (docs.check_links, md(f"[x]({docs.colab_home()}/blob/main/nbs/99_none.ipynb)")),
    (docs.check_links, md("[x]()")),
    (docs.check_links, py('#| fig-cap: "See [x](99_none.ipynb)."')),
    (docs.check_outputs, py("1/0", dict(output_type="error", ename="", evalue="", traceback=[]))),
    (docs.check_outputs, py("1", dict(output_type="stream", name="stderr", text=["warning"]))),
    (docs.check_outputs, py(CAPTIONED + "show(x)")),
    (docs.check_outputs, py("x", {"output_type": "display_data", "metadata": {}, "data": {docs.WIDGET: {}}})),
    (docs.check_figures, py('#| fig-alt: "A line."\nshow(x)', image())),
    (docs.check_figures, py('#| fig-cap: "It rises."\nshow(x)', image())),
    (docs.check_figures, py('#| fig-cap: "It rises."\n#| fig-alt: "It rises."\nshow(x)', image())),
    (docs.check_figures, py(CAPTIONED + "show(x), show(y)", image(), image())),
    (
        docs.check_figures,
        py("show(x)", shown(text_html='<video aria-label="x" src="data:video/mp4;base64,AA">')),
    ),
    (
        docs.check_figures,
        py(CAPTIONED + "show(x)", shown(text_html='<video src="data:video/mp4;base64,AA">')),
    ),
    (docs.check_figures, md("![](x.png)")),
    (docs.check_marks, py("x = 1\n#| export")),
    (docs.check_marks, py("#| exprot\nx = 1")),
    (docs.check_marks, py("#| fig-cap: It rises: always.\nx")),
    (docs.check_marks, md("#| export")),
    (docs.check_foreign, py("x", shown(text_html='<script src="https://elsewhere.org/x.js"></script>'))),
    (docs.check_foreign, md("![a picture](https://elsewhere.org/x.png)")),
    (docs.check_fences, md("```\nnever closed")),
    (docs.check_fences, md("$$ x = 1")),
    (docs.check_fences, md("<details><summary>Solution</summary>")),
]


@pytest.mark.parametrize("check, cell", FAULTS, ids=lambda x: getattr(x, "__name__", "made"))
def test_each_check_can_fail(check, cell):
    nb = docs.load(INDEX)
    before = [str(p) for p in check(INDEX, nb)]
    nb["cells"].append(copy.deepcopy(cell))
    named = [p for p in check(INDEX, nb) if str(p) not in before]
    assert named and all("made" in p.cell for p in named), f"{check.__name__} says nothing of {cell}"


def test_badge_and_size_can_fail(tmp_path):
    path = docs.CHAPTERS[0]
    nb = docs.load(path)
    nb["cells"][1]["source"] = [source(nb["cells"][1]).replace("tune-a-video-nbs", "elsewhere")]
    assert list(docs.check_badge(path, nb))
    big = tmp_path / "big.ipynb"
    big.write_bytes(b" " * 2_000_000)
    assert list(docs.check_size(big, {}))


def test_links_that_are_none_are_left_alone():
    text = "`[x](nowhere)` and\n\n```\n[y](nowhere)\n```\n\n$$a[i](j)$$ and $f[x](t)$, then [z](https://arxiv.org/abs/2212.11565) and [end]( 01_sprites.ipynb )"
    assert docs.links(text.replace("( 01", "(01").replace("nb )", "nb)")) == [
        "https://arxiv.org/abs/2212.11565",
        "01_sprites.ipynb",
    ]


@pytest.mark.parametrize(
    "words, address",
    [
        ("What you can now *prove*", "what-you-can-now-prove"),
        ("1. `fold`, then", "fold-then"),
        ("Here {#there}", "there"),
        ("A [link](x.ipynb): so", "a-link-so"),
    ],
)
def test_addresses_of_headings(words, address):
    assert docs.anchor(words) == address


def test_contrast_by_hand():
    assert docs.contrast("#000000", "#ffffff") == pytest.approx(21)
    assert docs.contrast("#777777", "#ffffff") == pytest.approx(
        4.48, abs=0.01
    )  # WCAG's own example of a near miss


# What Quarto is given.


@pytest.mark.parametrize("path", docs.NOTEBOOKS, ids=lambda p: p.stem)
def test_page(path):
    nb = docs.load(path)
    made = page(copy.deepcopy(nb))
    assert (
        made["cells"][0]["cell_type"] == "raw"
        and yaml.safe_load(source(made["cells"][0]).strip("-\n"))["title"]
    )
    for cell in made["cells"]:
        text = source(cell)
        assert all(
            isinstance(line, str) and (line.endswith("\n") or line is cell["source"][-1])
            for line in cell["source"]
        )
        if cell["cell_type"] == "code":
            assert not set(marks(text)) & set(OURS) and set(marks(text)) <= {*QUARTO}, (
                f"Quarto does not know {marks(text)}"
            )
            yaml.safe_load("\n".join(line[2:] for line in text.splitlines() if line.startswith("#|")))
            for o in cell["outputs"]:
                assert "text/html" not in o.get("data", {}) or "image/png" in o["data"], (
                    "raw HTML brings scripts of other servers"
                )
        else:
            assert "colab-badge.svg" not in text
    players = sum(h.count("<video") for c in docs.code(nb) for h in [docs.html_of(c)])
    assert json.dumps([c.get("outputs") for c in made["cells"]]).count("<video") == players, (
        "a player was lost"
    )
    kept = "".join(source(c) for c in made["cells"])
    for cell in docs.code(nb):
        for line in source(cell).splitlines():
            if not line.startswith("#|"):
                assert line in kept, f"a line of code was lost: {line}"


def test_names_link_once_and_only_in_prose():
    text = "# `read_clip`\n\n`read_clip` and `read_clip()`, not `this_one`, [`fold`](x), then `fold`\n\n```\n`unfold`\n```"
    made = linked(text)
    assert made.count("../api/video.qmd#read_clip") == 1 and made.startswith("# `read_clip`\n")
    assert (
        "#this_one" not in made
        and "[`fold`](x)" in made
        and "../api/video.qmd#fold" in made
        and "#unfold" not in made
    )


def test_widgets_leave_their_still():
    widget = {"output_type": "display_data", "metadata": {}, "data": {docs.WIDGET: {}, "text/plain": "x"}}
    nb = dict(
        cells=[md("# T\n> A sentence of some length."), py("x", widget, shown(image_png="iVBO"))],
        metadata=dict(widgets={}),
    )
    made = page(nb)
    assert [list(o["data"]) for o in made["cells"][1]["outputs"]] == [["image/png"]] and not made["metadata"]


# The reference.


def test_every_module_has_a_page():
    files = {p.stem for p in (ROOT / "tune_a_video_nbs").glob("*.py")} - {"__init__", "_modidx"}
    assert set(modules()) == files and set(pages()) == {"index.qmd"} | {f"{m}.qmd" for m in files}


@pytest.mark.parametrize("module", modules())
def test_every_public_name_is_in_the_reference(module):
    text, index = pages()[f"{module}.qmd"], pages()["index.qmd"]
    for name in public(module):
        assert f"## {name} {{#{name}}}" in text.replace("\\_", "_")
        assert f"[`{name}`]({module}.qmd#{name})" in index


@pytest.mark.parametrize("module", modules())
def test_the_reference_says_what_python_says(module):
    "Read from the source; must agree with the imported function: names, order, defaults."
    real = importlib.import_module(f"tune_a_video_nbs.{module}")
    for name in public(module):
        node, thing = defined(module)[name], getattr(real, name)
        if not inspect.isfunction(thing) or thing.__module__ != real.__name__:
            continue
        theirs = list(inspect.signature(thing).parameters.values())
        ours = parameters(node, False)
        assert [p["name"].lstrip("*") for p in ours] == [p.name for p in theirs], name
        assert [bool(p["default"]) for p in ours] == [p.default is not p.empty for p in theirs], name


def test_docments_reach_the_reference():
    text = pages()["show.qmd"]
    assert re.search(r"\| `fps` \| `float` \| `8` \| frames a second \|", text)
    assert "int &#124; None" in pages()["edit.qmd"] and "int \\|" not in pages()["edit.qmd"]
    assert (
        "TuneAVideoPipeline.tune" in pages()["edit.qmd"]
        and "TuneAVideoPipeline.invert" in pages()["edit.qmd"]
    )


def test_figures_page_has_every_caption():
    text = figures_page()
    for path in docs.CHAPTERS:
        for f in figures(path):
            assert f"../nbs/{path.name}#{f['id']}" in text


# What a stranger does first.


def test_the_front_pages_python_runs(tmp_path, monkeypatch):
    "The lines of the README, as they stand, on the clip that ships."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shutil.copy(ROOT / "tune_a_video_nbs/assets/star.mp4", tmp_path / "my.mp4")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})
    from tune_a_video_nbs.clips import read_clip

    assert read_clip("edit.mp4").shape == (8, 64, 64, 3)


def test_readme_shows_the_clip_before_anything_else():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert (
        text.index("web/edits.webp") < text.index("## ")
        and (ROOT / "web/edits.webp").stat().st_size < 400_000
    )
    assert "<div" not in text


# What the repository says of itself.


def test_workflows():
    flows = {
        p.stem: yaml.safe_load(p.read_text(encoding="utf-8"))
        for p in (ROOT / ".github/workflows").glob("*.yml")
    }
    assert set(flows) == {"test", "docs", "release"}
    assert flows["test"]["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert flows["release"][True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads `on` as true
    assert flows["release"]["jobs"]["publish"]["permissions"] == {
        "id-token": "write"
    }  # trusted publishing: no password anywhere
    assert "secrets." not in "".join(p.read_text() for p in (ROOT / ".github/workflows").glob("*.yml"))


def test_citation_names_version_address_and_paper():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    version = re.search(r"^version = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1]
    assert (
        cff["version"] == version
        and cff["repository-code"] == docs.REPO
        and cff["license"] == docs.pyproject("license")
    )
    paper = cff["references"][0]
    assert (
        paper["year"] == 2023
        and paper["authors"][0]["family-names"] == "Wu"
        and "2212.11565" in json.dumps(paper)
    )
