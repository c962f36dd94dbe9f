"The wheel holds what it needs, and what it installs works outside the repository."

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    files = (
        subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, files):  # what a checkout has, and nothing else
        if not (ROOT / name).exists():
            continue
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, clone],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_the_miniature_and_the_clip(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for part in (
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
        "settings.json",
        "README.md",
    ):
        assert f"tune_a_video_nbs/assets/sprites/{part}" in names
    assert "tune_a_video_nbs/assets/sprites-clip/model.safetensors" in names
    assert "tune_a_video_nbs/assets/star.mp4" in names
    assert not [n for n in names if n.startswith(("tests/", "nbs/"))]
    assert wheel.stat().st_size <= 12_000_000


def test_wheel_works_elsewhere(wheel, tmp_path):
    "Installed into a folder of its own, the terminal shows its models from outside the repository."
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel],
        check=True,
    )
    code = (
        "import tune_a_video_nbs as t, sys; from tune_a_video_nbs.cli import main; "
        "print(t.__file__, file=sys.stderr); sys.argv = ['tune-a-video', 'models']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stderr and "sprites" in done.stdout


def test_loads_in_plain_diffusers():
    "The bundled folder is Stable Diffusion's own layout: no code of ours is needed to draw with it."
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(ROOT / "tune_a_video_nbs/assets/sprites")
    image = pipe(
        "a red star on the grass", num_inference_steps=4, generator=torch.Generator().manual_seed(0)
    ).images[0]
    assert image.size == (64, 64)
    weights = sum(p.stat().st_size for p in (ROOT / "tune_a_video_nbs/assets/sprites").rglob("*.safetensors"))
    assert weights <= 12_000_000


def test_no_pickle_ships():
    assert not [
        p
        for p in (ROOT / "tune_a_video_nbs/assets").rglob("*")
        if p.suffix in (".bin", ".pt", ".ckpt", ".pkl", ".pth")
    ]
