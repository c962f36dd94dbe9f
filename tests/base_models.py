"What the tests of bases, LoRA and memory share: small models of three families, and a short way to use them."

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import PNDMScheduler
from small_nets import STABLE, small_pipeline
from torch import Tensor

from tune_a_video_nbs.pipeline import TuneAVideoPipeline

RED = "a red star is bouncing on the grass"
BLUE = "a blue heart is bouncing in the snow"


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_clip(num_frames: int = 2, side: int = 16) -> np.ndarray:
    return torch.randint(256, (num_frames, side, side, 3), generator=rng(), dtype=torch.uint8).numpy()


def ready(pipe: TuneAVideoPipeline) -> TuneAVideoPipeline:
    "Make a pipeline quick and quiet."
    pipe.set_progress_bar_config(disable=True)
    pipe.update_settings(num_inference_steps=2, guidance_scale=3.0, tune_steps=2)
    return pipe


def draw(pipe: TuneAVideoPipeline, prompt: str = BLUE) -> Tensor:
    "Return the latents of a clip drawn from one noise."
    return ready(pipe)(prompt, num_frames=2, generator=rng(), output_type="latent").frames


def check_whole_method(pipe: TuneAVideoPipeline) -> None:
    "Tune, invert, edit: a clip comes out, and tuning has changed what the model draws."
    before = draw(pipe)
    losses = pipe.tune(random_clip(), RED, lr=1e-2)
    edited = pipe(BLUE, latents=pipe.invert(random_clip())).frames
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    assert edited.shape == (1, 2, 16, 16, 3)
    assert not draw(pipe).equal(before)


def make_families(folder: Path) -> dict[str, Path]:
    "Write a small model of each family; that of SD 2.x predicts v, as SD 2.1 does."
    predicts_v = PNDMScheduler(**STABLE, prediction_type="v_prediction")
    return {
        "sd1": small_pipeline(folder / "sd1"),
        "sd2": small_pipeline(folder / "sd2", "sd2", predicts_v),
        "sdxl": small_pipeline(folder / "sdxl", "sdxl"),
    }


class Bomb:
    "What a pickle can hold: a call, made by whoever reads it."

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable, tuple[Path]]:
        return Path.touch, (self.path,)
