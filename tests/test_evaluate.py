"What of chapter 22 no cell can hold: whole tables, devices, and statistics at their limits."

import json
import math
import warnings
from importlib.resources import files

import numpy as np
import pytest
from scipy import stats

from tune_a_video_nbs import evaluate
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.evaluate import edit_table, round_scores, run_job, spearman, summary, with_interval
from tune_a_video_nbs.world import get_world

FEW = dict(num_inference_steps=2)
QUICK = dict(tune_options=dict(steps=2), invert_options=FEW, sample_options=FEW)
SHIPPED = files("tune_a_video_nbs") / "assets" / "sprites"


def test_every_clip_of_a_table_begins_with_an_untuned_network():
    found = edit_table(2, num_frames=4, progress=False, **QUICK)
    job = get_world("sprites").jobs(2)[1]
    alone, _ = run_job(evaluate.load_pipeline("sprites"), job, num_frames=4, **QUICK)
    among = [row for row in found["rows"] if row["caption"] == job.caption]
    assert [row["kind"] for row in among] == list(job.prompts)
    for score in ("path_error", "psnr", "reconstruction"):
        assert [row[score] for row in among] == pytest.approx([row[score] for row in alone], rel=1e-3)
    assert found["table"] == summary(found["rows"])


def test_clips_are_bytes_and_kinds_may_be_chosen():
    job = get_world("sprites").jobs(1)[0]
    rows, clips = run_job(evaluate.load_pipeline("sprites"), job, 3, kinds=["shape"], **QUICK)
    assert [row["kind"] for row in rows] == ["shape"]
    assert list(clips) == ["source", "reconstruction", "shape"]
    assert {(clip.dtype, clip.shape) for clip in clips.values()} == {(np.dtype("uint8"), (3, 64, 64, 3))}


def test_a_table_is_made_on_the_device_that_is_asked_for(monkeypatch):
    "B14: `edit_table` took the CPU, whatever the machine had."
    seen = []

    def watched(pipe, *args, **options):
        seen.append(pipe.device.type)
        return [], {}

    monkeypatch.setattr(evaluate, "run_job", watched)
    edit_table(1, progress=False, device="meta")
    edit_table(1, progress=False)
    assert seen == ["meta", "cpu"]


def test_stills_are_drawn_and_read():
    shares = evaluate.still_scores(n=3, steps=2)
    assert list(shares) == ["colour", "shape", "place", "all"]
    assert all(0 <= share <= 1 for share in shares.values())


def test_rounding_changes_numbers_alone():
    rows = [dict(clip=3, kind="shape", psnr=1 / 3, kept=None)]
    assert round_scores(rows) == [dict(clip=3, kind="shape", psnr=0.3333, kept=None)]
    assert rows[0]["psnr"] == 1 / 3


@pytest.mark.parametrize("clips", [3, 4, 6, 24])
def test_an_interval_is_as_wide_as_students_t(clips):
    "B20: the expansion in its place was 3.1 % too narrow for 3 clips."
    values = np.random.default_rng(clips).normal(size=clips)
    mean, half = with_interval(list(values))
    low, high = stats.t.interval(0.95, clips - 1, loc=values.mean(), scale=stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))


def test_two_clips_have_no_interval():
    mean, half = with_interval([1.0, 2.0])
    assert mean == 1.5 and math.isnan(half)


def rows_of(clips, per_clip, seed=0):
    noise = np.random.default_rng(seed)
    return [
        dict(clip=clip, x=clip + noise.normal(), y=clip + noise.normal())
        for clip in range(clips)
        for _ in range(per_clip)
    ]


def test_rows_without_a_value_are_left_out():
    "B19: `score_edit` gives None for what nobody asked to keep, and the correlation was a TypeError."
    rows = rows_of(6, 3)
    holes = [*rows, dict(clip=7, x=1.0, y=None), dict(clip=8, y=2.0)]
    assert spearman(holes, "x", "y") == spearman(rows, "x", "y")
    with pytest.raises(InputError, match="no row has both"):
        spearman(holes, "x", "z")


def test_the_bootstrap_draws_whole_clips():
    rows = rows_of(6, 1)
    copied = [row for row in rows for _ in range(10)]
    assert spearman(copied, "x", "y") == pytest.approx(spearman(rows, "x", "y"))
    apart = [row | dict(clip=i) for i, row in enumerate(copied)]
    _, low, high = spearman(copied, "x", "y")
    _, narrow_low, narrow_high = spearman(apart, "x", "y")
    assert narrow_high - narrow_low < (high - low) / 2


def test_a_constant_column_has_no_correlation_and_one_clip_no_interval():
    rows = [row | dict(same=1.0) for row in rows_of(4, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        correlation, _, _ = spearman(rows, "x", "same", draws=20)
    assert math.isnan(correlation)
    once = [row | dict(rare=float(i == 0)) for i, row in enumerate(rows)]  # constant in a third of the draws
    assert not any(math.isnan(value) for value in spearman(once, "x", "rare"))
    correlation, low, high = spearman(rows_of(1, 5), "x", "y")
    assert -1 <= correlation <= 1 and math.isnan(low) and math.isnan(high)


def test_shipped_scores_are_read():
    saved = json.loads((SHIPPED / "scores.json").read_text())
    for kind, scores in summary(saved["rows"]).items():
        assert scores == pytest.approx(saved["table"][kind])
