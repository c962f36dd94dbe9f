"The pages of the book without Quarto: checks that can fail, the filter, the figures and the reference."

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
from make_sidebar import PARTS, part

from tune_a_video_nbs.clips import read_clip

ROOT = docs.ROOT
INDEX = ROOT / "nbs/index.ipynb"


@pytest.mark.parametrize("path", docs.NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path):
    nb = docs.load(path)
    problems = []
    for check in docs.NOTEBOOK_CHECKS:
        problems += map(str, docs.notebook_problems(check, path, nb))
    assert not problems, "\n" + "\n".join(problems)


@pytest.mark.parametrize("check", docs.WHOLE_CHECKS, ids=lambda c: c.__name__)
def test_whole(check):
    problems = [str(problem) for problem in docs.whole_problems(check)]
    assert not problems, "\n" + "\n".join(problems)


# Each fault below is put into a sound notebook, and its check must name the cell.


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
    "An output of these kinds: `image_png` stands for image/png."
    data = {kind.replace("_", "/"): value for kind, value in data.items()}
    return dict(output_type="display_data", metadata={}, data=data)


def image():
    return shown(image_png="iVBO")


CAPTIONED = '#| fig-cap: "It rises."\n#| fig-alt: "A line."\n'
PLAYER = '<video src="data:video/mp4;base64,AA">'
NAMED_PLAYER = PLAYER.replace("<video", '<video aria-label="x"')
ERROR = dict(output_type="error", ename="", evalue="", traceback=[])
STDERR = dict(output_type="stream", name="stderr", text=["warning"])
WIDGET = shown(**{docs.WIDGET: {}, "text/plain": "x"})
FAULTS = [
    (docs.check_title, md("# Again")),
    (docs.check_headings, md("## Fine\n\n#### Too deep")),
    (docs.check_headings, md("## Twice\n\n## Twice")),
    (docs.check_links, md("[x](99_none.ipynb)")),
    (docs.check_links, md("[x](01_sprites.ipynb#no-such-heading)")),
    (docs.check_links, md("[x](http://arxiv.org/abs/2212.11565)")),
    (docs.check_links, md("[x](https://arxiv)")),
    (docs.check_links, md("[x](https://github.com/somebody/tune_a_video_nbs)")),
    (docs.check_links, md(f"[x]({docs.COLAB}/blob/main/nbs/99_none.ipynb)")),
    (docs.check_links, md("[x]()")),
    (docs.check_links, py('#| fig-cap: "See [x](99_none.ipynb)."')),
    (docs.check_outputs, py("1/0", ERROR)),
    (docs.check_outputs, py("1", STDERR)),
    (docs.check_outputs, py(CAPTIONED + "show(x)")),
    (docs.check_outputs, py("x", WIDGET)),
    (docs.check_figures, py('#| fig-alt: "A line."\nshow(x)', image())),
    (docs.check_figures, py('#| fig-cap: "It rises."\nshow(x)', image())),
    (docs.check_figures, py('#| fig-cap: "It rises."\n#| fig-alt: "It rises."\nshow(x)', image())),
    (docs.check_figures, py(CAPTIONED + "show(x), show(y)", image(), image())),
    (docs.check_figures, py("show(x)", shown(text_html=NAMED_PLAYER))),
    (docs.check_figures, py(CAPTIONED + "show(x)", shown(text_html=PLAYER))),
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
    before = docs.notebook_problems(check, INDEX, nb)
    nb["cells"].append(copy.deepcopy(cell))
    found = [problem for problem in docs.notebook_problems(check, INDEX, nb) if problem not in before]
    assert found, f"{check.__name__} says nothing of {cell}"
    assert all(problem.cell.startswith("made ") for problem in found)


def test_badge_and_size_can_fail(tmp_path):
    path = docs.CHAPTERS[0]
    nb = docs.load(path)
    nb["cells"][1]["source"] = [source(nb["cells"][1]).replace("tune-a-video-nbs", "elsewhere")]
    assert docs.notebook_problems(docs.check_badge, path, nb)
    big = tmp_path / "big.ipynb"
    big.write_bytes(b" " * 2_000_000)
    assert docs.notebook_problems(docs.check_size, big, {})


def test_numbers_and_the_front_page_can_fail(monkeypatch):
    "A second chapter of a number, and a chapter that no table lists."
    new = docs.CHAPTERS[0].with_name("01_another.ipynb")
    monkeypatch.setattr(docs, "CHAPTERS", [*docs.CHAPTERS, new])
    monkeypatch.setattr(docs, "title", lambda path: path.stem)
    assert "01_another.ipynb share the number 01" in str(docs.whole_problems(docs.check_numbers)[0])
    assert any("lacks [01 01_another]" in str(problem) for problem in docs.whole_problems(docs.check_index))
    assert any(
        "lists nbs/01_another.ipynb 0 times" in str(p) for p in docs.whole_problems(docs.check_sidebar)
    )


def test_the_order_of_the_sidebar_can_fail(monkeypatch):
    text = docs.read("_quarto.yml")
    first, second = [f"            - nbs/{path.name}\n" for path in docs.CHAPTERS[:2]]
    swapped = text.replace(first + second, second + first)
    assert swapped != text
    monkeypatch.setattr(docs, "read", lambda name: swapped)
    found = " ".join(what for _, what in docs.check_sidebar())
    assert "out of order" in found
    assert "not what web/make_sidebar.py writes" in found


def test_the_workshop_comes_last():
    parts = [part(path) for path in docs.CHAPTERS]
    assert parts[-1] == "Workshop"
    assert list(dict.fromkeys(parts)) == [
        name for name in PARTS.values() if name in parts
    ]  # none comes twice


def test_links_that_are_none_are_left_alone():
    code_and_math = "`[x](nowhere)`\n\n```\n[y](nowhere)\n```\n\n$$a[i](j)$$ and $f[x](t)$, then "
    text = code_and_math + "[z](https://arxiv.org/abs/2212.11565) and [end](01_sprites.ipynb)"
    assert docs.links(text) == ["https://arxiv.org/abs/2212.11565", "01_sprites.ipynb"]


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


@pytest.fixture(params=docs.NOTEBOOKS, ids=[path.stem for path in docs.NOTEBOOKS])
def notebook(request):
    return docs.load(request.param)


def test_a_page_has_front_matter(notebook):
    first = page(notebook)["cells"][0]
    assert first["cell_type"] == "raw"
    assert yaml.safe_load(source(first).strip("-\n"))["title"]


def test_a_page_is_what_quarto_reads(notebook):
    "Lines end where lines end, marks are Quarto's, and HTML brings no script of other servers."
    for cell in page(notebook)["cells"]:
        assert all(line.endswith("\n") for line in cell["source"][:-1])
        if cell["cell_type"] != "code":
            assert "colab-badge.svg" not in source(cell)
            continue
        found = marks(source(cell))
        assert set(found) <= set(QUARTO) - set(OURS)
        for name, value in found.items():
            assert yaml.safe_load(f"{name}: {value}") is not None
        for output in cell["outputs"]:
            kinds = output.get("data", {})
            assert "text/html" not in kinds or "image/png" in kinds


def test_a_page_loses_nothing(notebook):
    "Every player and every line of code that is not hidden."
    made = page(notebook)
    outputs = json.dumps([cell.get("outputs") for cell in made["cells"]])
    assert outputs.count("<video") == sum(docs.html(cell).count("<video") for cell in docs.code(notebook))
    kept = "".join(source(cell) for cell in made["cells"])
    for cell in docs.code(notebook):
        for line in source(cell).splitlines():
            assert line.startswith("#|") or line in kept


def test_making_a_page_changes_no_notebook(notebook):
    before = copy.deepcopy(notebook)
    page(notebook)
    assert notebook == before


def test_names_link_once_and_only_in_prose():
    mentions = "`q_sample` and `q_sample()`, not `this_one`, [`fold`](x), then `fold`"
    text = f"# `q_sample`\n\n{mentions}\n\n```\n`unfold`\n```"
    made = linked(text)
    assert made.startswith("# `q_sample`\n")
    assert made.count("../api/ddpm.qmd#q_sample") == 1
    assert "#this_one" not in made
    assert "[`fold`](x)" in made
    assert "../api/video.qmd#fold" in made
    assert "#unfold" not in made


def test_widgets_leave_their_still():
    cells = [md("# T\n> A sentence of some length."), py("x", WIDGET, image())]
    made = page(dict(cells=cells, metadata=dict(widgets={})))
    assert [list(output["data"]) for output in made["cells"][1]["outputs"]] == [["image/png"]]
    assert made["metadata"] == {}


def test_code_before_the_first_picture_folds_into_its_cell():
    cells = [
        md("# T\n> A sentence of some length."),
        py("import a"),
        py("a = 1"),
        py(CAPTIONED + "show(a)", image()),
    ]
    title, opening = page(dict(cells=[*cells], metadata={}))["cells"]
    assert marks(source(opening))["code-fold"] == "true"
    assert source(opening).endswith("import a\n\na = 1\n\nshow(a)")


# The reference.


def test_every_module_has_a_page():
    not_of_a_chapter = {"__init__", "_modidx", "stable_diffusion"}  # the last is a forwarding address
    files = {p.stem for p in (ROOT / "tune_a_video_nbs").glob("*.py")} - not_of_a_chapter
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
        assert [p.name.lstrip("*") for p in ours] == [p.name for p in theirs], name
        assert [bool(p.default) for p in ours] == [p.default is not p.empty for p in theirs], name


def test_docments_reach_the_reference():
    assert re.search(r"\| `fps` \| `float` \| `8` \| frames a second \|", pages()["show.qmd"])


def test_a_bar_in_a_type_does_not_end_its_cell():
    text = pages()["show.qmd"]
    assert "int &#124; None" in text
    assert "int \\|" not in text


def test_methods_are_in_the_reference():
    text = pages()["pipeline.qmd"]
    assert "TuneAVideoPipeline.tune" in text
    assert "TuneAVideoPipeline.invert" in text


def test_figures_page_has_every_caption():
    text = figures_page()
    for path in docs.CHAPTERS:
        for figure in figures(path):
            assert f"../nbs/{path.name}#{figure.id}" in text


# What a stranger does first.


def test_the_front_pages_python_runs(tmp_path, monkeypatch):
    "The lines of the README, as they stand, on the clip that ships."
    text = docs.read("README.md")
    shutil.copy(ROOT / "tune_a_video_nbs/assets/star.mp4", tmp_path / "my.mp4")
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})

    assert read_clip("edit.mp4").shape == (8, 64, 64, 3)


def test_readme_shows_the_clip_before_anything_else():
    text = docs.read("README.md")
    assert text.index("web/edits.webp") < text.index("## ")
    assert (ROOT / "web/edits.webp").stat().st_size < 400_000
    assert "<div" not in text


# What the repository says of itself.


@pytest.fixture(scope="module")
def workflows():
    paths = (ROOT / ".github/workflows").glob("*.yml")
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


def test_every_python_is_tested(workflows):
    assert set(workflows) == {"test", "docs", "release"}
    matrix = workflows["test"]["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]


def test_a_release_needs_a_tag_and_no_password(workflows):
    release = workflows["release"]
    assert release[True]["push"]["tags"] == ["v*"]  # YAML 1.1 reads `on` as true
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}  # trusted publishing
    assert "secrets." not in json.dumps([str(workflow) for workflow in workflows.values()])


def test_citation_names_version_address_and_paper():
    cff = yaml.safe_load(docs.read("CITATION.cff"))
    assert cff["version"] == re.search(r"^version = (.*)$", docs.read("settings.ini"), re.M)[1]
    assert cff["repository-code"] == docs.REPO
    assert cff["license"] == docs.pyproject("license")
    paper = cff["references"][0]
    assert paper["year"] == 2023
    assert paper["authors"][0]["family-names"] == "Wu"
    assert "2212.11565" in json.dumps(paper)


def test_jinja_is_promised_and_pinned():
    "What draws every table and page is required, and stands in both sets of tested versions."
    assert re.search(r"\bjinja2>=3\.1\b", docs.read("settings.ini"))
    assert "jinja2==" in docs.read("constraints.txt")
    assert "jinja2==" in docs.read("constraints-colab.txt")
