"What of chapters 21 and 24 no cell can hold: libraries that are missing, and weights in other folders."

import builtins
import sys
import warnings

import numpy as np
import pytest
import torch
from small_clip import save_small_clip

from tune_a_video_nbs.distributions import fid, inception_score
from tune_a_video_nbs.errors import InputError, MissingPackageError
from tune_a_video_nbs.judge import clip_model
from tune_a_video_nbs.metrics import (
    block_flow,
    frame_consistency,
    lpips,
    motion,
    opencv_flow,
    pick_score,
    text_alignment,
    warp_error,
)
from tune_a_video_nbs.sprites import draw_clip

PROMPT = "a red star is bouncing on the grass"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_small_clip(tmp_path_factory.mktemp("clip"))


def test_pick_score_reads_a_clip_from_a_folder_and_uses_its_own_sharpness(small):
    clip, judge = draw_clip(PROMPT, 4), clip_model(small)
    tokens = judge.tokenizer([PROMPT], return_tensors="pt")
    pixels = judge.processor(list(clip), return_tensors="pt").pixel_values
    with torch.no_grad():
        want = judge.model(**tokens, pixel_values=pixels).logits_per_image.mean().item()
    assert abs(pick_score(clip, PROMPT, model=small) - want) < 1e-3


@pytest.mark.parametrize(
    "score",
    [
        lambda clip, **options: pick_score(clip, PROMPT, **options),
        lambda clip, **options: text_alignment(clip, PROMPT, **options),
        frame_consistency,
    ],
)
def test_a_score_works_on_the_device_that_is_asked_for(score, small, monkeypatch):
    "B14: each score took the CPU, whatever the machine had."
    asked = []

    def watched(model, device=None):
        asked.append((model, device))
        return clip_model(model)

    monkeypatch.setattr("tune_a_video_nbs.metrics.clip_model", watched)
    score(draw_clip(PROMPT, 2), model=small, device="cuda")
    assert asked == [(small, "cuda")]


def test_a_clip_of_another_size_is_warned_of_at_the_callers_line():
    with pytest.warns(UserWarning, match="openai/clip-vit-base-patch32") as caught:
        frame_consistency(np.zeros((3, 32, 48, 3), np.uint8))
    assert caught[0].filename == __file__


def test_a_named_judge_is_not_warned_of(small):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        frame_consistency(np.zeros((3, 32, 48, 3), np.uint8), small)


def test_block_flow_prefers_the_shorter_of_equal_shifts():
    stripes = np.zeros((1, 24, 24, 3), np.uint8)
    stripes[:, :, ::4] = 255  # a shift by 4 looks the same
    assert block_flow(stripes, stripes).abs().max() == 0


def test_an_unknown_flow_is_refused():
    with pytest.raises(InputError, match="block, opencv"):
        motion(np.zeros((2, 8, 8, 3), np.uint8), "raft")


@pytest.fixture
def no_opencv(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_opencv_the_error_says_what_to_do(no_opencv):
    with pytest.raises(MissingPackageError, match="flow='block'"):
        warp_error(draw_clip(PROMPT, 2), flow="opencv")


def test_opencv_finds_a_shift():
    cv2 = pytest.importorskip("cv2")
    texture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    texture = cv2.GaussianBlur(texture, (0, 0), 3)
    before = texture[None, 8:-8, 8:-8]
    after = np.roll(texture, (2, -3), axis=(0, 1))[None, 8:-8, 8:-8]
    flow = opencv_flow(before, after)[0, 16:-16, 16:-16]
    assert (flow - torch.tensor([-3.0, 2.0])).norm(dim=-1).median() < 0.3
    change = np.square((before - after.astype(float)) / 255).mean()
    assert warp_error(np.concatenate([before, after]), flow="opencv") < 0.1 * change


def test_lpips_without_its_weights_says_so(monkeypatch):
    from torchmetrics.functional.image import lpips as module

    def absent(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(module, "learned_perceptual_image_patch_similarity", absent)
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(MissingPackageError, match="pip install torchvision"):
        lpips(picture, picture)


@pytest.mark.parametrize("score", [lambda pictures: fid(pictures, pictures), inception_score])
def test_without_inception_the_error_names_the_way_out(score, monkeypatch):
    from torchmetrics.image import fid as fid_module
    from torchmetrics.image import inception as inception_module

    def absent(*args, **kwargs):
        raise ModuleNotFoundError("torch-fidelity")

    monkeypatch.setattr(fid_module, "FrechetInceptionDistance", absent)
    monkeypatch.setattr(inception_module, "InceptionScore", absent)
    with pytest.raises(MissingPackageError, match="features="):
        score(np.zeros((4, 8, 8, 3), np.uint8))


def test_scores_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    inception_score(np.zeros((20, 4, 4, 3), np.uint8), lambda pictures: torch.eye(20), splits=2)
    assert torch.equal(torch.rand(3), want)
