"What of chapter 23 no cell can hold: a run that is cut off, folders of other runs, and what ships."

import json
from importlib.resources import files

import pytest

from tune_a_video_nbs import ablation
from tune_a_video_nbs.ablation import ablation_summary, ablation_table, as_columns, as_rows
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.world import get_world

FEW = dict(num_inference_steps=2)
VARIANTS = {
    "tuned": dict(tune=dict(steps=2), invert=FEW, sample=FEW),
    "untuned": dict(tune=dict(steps=0), invert=FEW, sample=FEW),
}
OPTIONS = dict(seeds=2, cross=1, num_frames=4, variants=VARIANTS, progress=False)


def test_an_ablation_that_is_cut_off_goes_on(tmp_path, monkeypatch):
    "Each clip's rows are kept; seeds are taken in turn; a folder of another run is refused."
    asked, rows_of = [], ablation.ablation_rows

    def watched(job, seed, **options):
        if len(asked) == 2:
            raise KeyboardInterrupt
        asked.append((job.drawing, seed))
        return rows_of(job, seed, **options)

    monkeypatch.setattr(ablation, "ablation_rows", watched)
    with pytest.raises(KeyboardInterrupt):
        ablation_table(2, keep=tmp_path, **OPTIONS)
    assert len(list(tmp_path.iterdir())) == 2
    first, second = (job.drawing for job in get_world("sprites").jobs(2))
    assert asked == [(first, 0), (first, 1)]

    asked.clear()
    found = ablation_table(2, keep=tmp_path, **OPTIONS)
    assert asked == [(second, 1)]  # only the last of three was still to be done
    rows, table = as_rows(found["columns"]), found["table"]
    assert {(row["clip"], row["seed"]) for row in rows} == {(first, 0), (first, 1), (second, 1)}
    kinds = {row["kind"] for row in rows if row["variant"] == "tuned"}
    assert kinds == {"colour", "shape", "place", "everything", "noise"}
    assert table["the exact answer"]["edited"][0] == 1
    assert table["nothing done"]["edited"][0] < 1
    assert table["frozen"]["flicker"][0] == 0
    with pytest.raises(InputError, match="another run asked for"):
        ablation_table(2, keep=tmp_path, **OPTIONS | dict(num_frames=5))


@pytest.fixture
def one_row(monkeypatch):
    "A row in place of a minute of work; remembers what was asked for."
    asked = []

    def answer(**options):
        asked.append(options)
        return [dict(clip=1, kind="shape", variant="v", psnr=1 / 3)]

    monkeypatch.setattr(ablation, "ablation_rows", answer)
    return asked


def test_rows_kept_by_an_older_version_are_found(tmp_path, one_row):
    "They name no world, for there was one."
    job = get_world("sprites").jobs(1)[0]
    asked = dict(
        job=[job.caption, job.prompts, job.drawing],
        seed=0,
        num_frames=4,
        variants=VARIANTS,
        model="sprites",
    )
    rows = [dict(clip=job.drawing, kind="shape", variant="tuned", psnr=20.0)]
    (tmp_path / "report_000_0.json").write_text(json.dumps(dict(asked=asked, rows=rows)))
    found = ablation_table(1, keep=tmp_path, **OPTIONS | dict(cross=0))
    assert as_rows(found["columns"]) == rows
    assert one_row == []


def test_what_is_kept_is_rounded_and_equals_what_is_returned(tmp_path, one_row):
    made = ablation_table(1, keep=tmp_path, **OPTIONS | dict(cross=0))
    again = ablation_table(1, keep=tmp_path, **OPTIONS | dict(cross=0))
    assert len(one_row) == 1
    assert made["columns"] == again["columns"] and made["columns"]["psnr"] == [0.3333]


def test_an_ablation_is_made_on_the_device_that_is_asked_for(one_row):
    "B14: `ablation_table` took the CPU, whatever the machine had."
    ablation_table(1, device="cuda", **OPTIONS | dict(cross=0))
    assert [options["device"] for options in one_row] == ["cuda"]


def test_shipped_rows_make_the_shipped_table():
    saved = json.loads((files("tune_a_video_nbs") / "assets" / "sprites" / "ablation.json").read_text())
    rows = as_rows(saved["columns"])
    assert as_columns(rows) == saved["columns"]
    for variant, scores in ablation_summary(rows).items():
        for name, (mean, half) in scores.items():
            assert (mean, half) == pytest.approx(saved["table"][variant][name], rel=1e-3, abs=1e-6)
