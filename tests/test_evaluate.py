"What of chapter 20 no cell can hold: libraries that are missing, weights in other folders, and what ships."

import builtins
import shutil
import sys
from importlib.resources import files

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from tune_a_video_nbs import evaluate
from tune_a_video_nbs.judge import captioned_stills, clip_model, retrieval, train_clip
from tune_a_video_nbs.metrics import (
    fid,
    frame_consistency,
    inception_score,
    lpips,
    opencv_flow,
    pick_score,
    text_alignment,
    warp_error,
)
from tune_a_video_nbs.miniature import TOKENS, build_tokenizer
from tune_a_video_nbs.sprites import draw_clip, held_out

SHIPPED = files("tune_a_video_nbs") / "assets" / "sprites-clip"
SAID = "a red star is bouncing on the grass"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    "A random CLIP in the format of PickScore's: other widths in the two towers, an image size of its own, safetensors, its own sharpness."
    folder, tokenizer = tmp_path_factory.mktemp("pick"), build_tokenizer()
    torch.manual_seed(0)
    ends = dict(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        **ends,
    )
    vision = dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    model = CLIPModel(
        CLIPConfig(
            text_config=text | dict(hidden_act="gelu"),
            vision_config=vision | dict(hidden_act="gelu"),
            projection_dim=24,
        )
    )
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28)).save_pretrained(
        folder
    )
    return folder


def test_pick_score_reads_a_clip_from_a_folder_and_uses_its_own_sharpness(tiny):
    clip, judge = draw_clip(SAID, 4), clip_model(tiny)
    inputs = judge.tokenizer([SAID], return_tensors="pt") | dict(
        pixel_values=judge.processor(list(clip), return_tensors="pt").pixel_values
    )
    with torch.no_grad():
        want = judge.model.eval()(**inputs).logits_per_image.mean().item()
    assert abs(pick_score(clip, SAID, model=tiny) - want) < 1e-3
    assert abs(judge.scale - np.exp(4.6)) < 0.01
    assert clip_model(tiny) is judge and clip_model(judge) is judge  # loaded once


def test_a_pickle_is_never_read(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "pickled")
    (tmp_path / "pickled/model.safetensors").unlink()
    torch.save(clip_model(tiny).model.state_dict(), tmp_path / "pickled/pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        clip_model(tmp_path / "pickled")


def test_words_are_padded_and_cut_without_changing_them(tiny):
    judge = clip_model(tiny)
    alone, among = (
        judge.words(SAID),
        judge.words([SAID, "a red star is bouncing to the left on the grass"])[:1],
    )
    assert torch.allclose(alone, among, atol=1e-5)
    with pytest.warns(UserWarning, match="cut off"):
        judge.words(SAID + " and" + SAID[1:] * 3)


def test_a_clip_of_another_size_is_warned_of():
    with pytest.warns(UserWarning, match="openai/clip-vit-base-patch32"):
        frame_consistency(np.zeros((3, 32, 48, 3), np.uint8))


def _without(monkeypatch, name):
    real = builtins.__import__

    def no(what, *args, **kwargs):
        if what.split(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return real(what, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no)


def test_without_opencv_the_error_says_what_to_do(monkeypatch):
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    _without(monkeypatch, "cv2")
    with pytest.raises(RuntimeError, match="flow='block'"):
        warp_error(draw_clip(SAID, 2), flow="opencv")


def test_opencv_finds_a_shift():
    cv2 = pytest.importorskip("cv2")
    texture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8), (0, 0), 3)
    a, b = texture[None, 8:-8, 8:-8], np.roll(texture, (2, -3), axis=(0, 1))[None, 8:-8, 8:-8]
    flow = opencv_flow(a, b)[0, 16:-16, 16:-16]
    assert (flow - torch.tensor([-3.0, 2.0])).norm(dim=-1).median() < 0.3
    assert (
        warp_error(np.concatenate([a, b]), flow="opencv")
        < 0.1 * np.square((a - b.astype(float)) / 255).mean()
    )


@pytest.mark.parametrize("score", [lambda p: fid(p, p), inception_score])
def test_without_inception_the_error_names_the_way_out(score, monkeypatch):
    from torchmetrics.image import fid as f
    from torchmetrics.image import inception as i

    def absent(*args, **kwargs):
        raise ModuleNotFoundError("torch-fidelity")

    monkeypatch.setattr(f, "FrechetInceptionDistance", absent)
    monkeypatch.setattr(i, "InceptionScore", absent)
    with pytest.raises(RuntimeError, match="features="):
        score(np.zeros((4, 8, 8, 3), np.uint8))


def test_lpips_without_its_weights_says_so(monkeypatch):
    from torchmetrics.functional.image import lpips as module

    def absent(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(module, "learned_perceptual_image_patch_similarity", absent)
    with pytest.raises(RuntimeError, match="pip install torchvision"):
        lpips(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8))


def test_scores_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    inception_score(np.zeros((20, 4, 4, 3), np.uint8), lambda p: torch.eye(20), splits=2)
    assert torch.equal(torch.rand(3), want)


def test_nothing_held_out_is_trained_on():
    _, _, place, thing = captioned_stills(3000, torch.Generator().manual_seed(1))
    there = thing < 64
    assert there.any() and not there.all() and not held_out(thing // 8, thing % 8, place)[there].any()


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = (train_clip(tmp_path, steps=2, stills=300) / "model.safetensors").read_bytes()
    assert (train_clip(tmp_path, steps=2, stills=300) / "model.safetensors").read_bytes() == first


def test_the_shipped_clip_is_small_safe_and_no_guesser():
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 1_500_000
    assert not [
        p.name for p in SHIPPED.iterdir() if p.suffix not in (".safetensors", ".json", ".jsonl", ".md")
    ]
    right = retrieval(n=256)
    assert (
        min(right[k] for k in ("colour", "shape", "place")) > 0.25
    )  # a guesser's share is 1/8, with a deviation of .02
    clip = draw_clip(SAID, 4)
    assert text_alignment(clip, SAID) > text_alignment(clip, "a blue star is bouncing on the sea")


def test_an_ablation_that_is_cut_off_goes_on(tmp_path, monkeypatch):
    "Each clip's rows are kept; seeds are taken in turn; a folder of another run is refused."
    few = dict(num_inference_steps=2)
    variants = {
        "tuned": dict(tune=dict(steps=2), invert=few, sample=few),
        "untuned": dict(tune=dict(steps=0), invert=few, sample=few),
    }
    seen, rows_of = [], evaluate.ablation_rows

    def watched(job, seed, **kwargs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append((job[2], seed))
        return rows_of(job, seed, **kwargs)

    monkeypatch.setattr(evaluate, "ablation_rows", watched)

    def again(**k):
        return evaluate.ablation_table(
            2, **dict(seeds=2, cross=1, num_frames=4, variants=variants, keep=tmp_path, progress=False) | k
        )

    with pytest.raises(KeyboardInterrupt):
        again()
    assert len(list(tmp_path.iterdir())) == 2
    first, second = (job[2] for job in evaluate.sprite_jobs(2))
    assert seen == [(first, 0), (first, 1)]
    seen[:] = []
    found = again()
    assert seen == [(second, 1)]  # only the last of three was still to be done
    rows, table = evaluate.as_rows(found["columns"]), found["table"]
    assert {(r["clip"], r["seed"]) for r in rows} == {(first, 0), (first, 1), (second, 1)}
    assert {r["kind"] for r in rows if r["variant"] == "tuned"} == {*evaluate.KINDS, "noise"}
    assert (
        table["the exact answer"]["edited"][0] == 1
        and table["nothing done"]["edited"][0] < 1
        and table["frozen"]["flicker"][0] == 0
    )
    with pytest.raises(ValueError, match="another run asked for"):
        again(num_frames=5)
