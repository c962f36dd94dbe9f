"""Hold one network and run its steps when asked: ours, or the authors'. run.py starts it once for each side.

It reads one JSON line, a job, and then runs that job's own loop: after every step it writes a line and waits
for the next one, so that two workers take turns.
This file runs under both Pythons, so each side imports its own libraries late."""

import contextlib
import ctypes
import gc
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, TextIO

import torch

LEARNS = ("attn1.to_q", "attn2.to_q", "attn_temp")
CAPTION = "a red star is bouncing on a night sky"
WORDS = "a blue heart is bouncing on a night sky"
CLEAR = Path("/proc/self/clear_refs")  # Linux: writing 5 sets VmHWM back to VmRSS


class Enough(Exception):
    "Says that the driver has seen enough steps of this job."


class Clock:
    "Called after each step of a loop: tells the driver what it took, and waits until asked for another."

    def __init__(self, device: str, replies: TextIO) -> None:
        self.cuda = device == "cuda"
        self.replies = replies

    def start(self) -> None:
        "Begin with memory as it stands now."
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system,
            if CLEAR.exists():
                CLEAR.write_text("5")  # and the high-water mark to where the process stands
        self.before = self._bytes("VmRSS")
        self.is_first = True
        self._go()

    def _go(self) -> None:
        self.began = time.perf_counter()
        self.worked = time.process_time()

    def _bytes(self, field: str) -> int:
        "Return the memory held now (VmRSS), or at most since the start (VmHWM)."
        if self.cuda:
            return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[field].split()[0]) * 1024

    def __call__(self, **facts: Any) -> None:
        "Tell what a step took, and wait. Raises `Enough` when no other is wanted."
        if self.cuda:
            torch.cuda.synchronize()
        took = dict(seconds=time.perf_counter() - self.began, cpu_seconds=time.process_time() - self.worked)
        peak = self._bytes("VmHWM")
        self.tell(**took, peak=peak, above=peak - self.before, **facts)
        if sys.stdin.readline().strip() != '"again"':
            raise Enough
        if self.is_first:
            self.start()  # memory counts from the second step on: now all weights are loaded, all states made
            self.is_first = False
        else:
            self._go()

    def tell(self, **facts: Any) -> None:
        print(json.dumps(facts), file=self.replies, flush=True)


class Side:
    "Hold what both sides share: the same questions, and loops around the bare network."

    def __init__(self, folder: str, device: str) -> None:
        self.folder = Path(folder)
        self.device = device
        self.unet: Any = None

    def question(self, frames: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        "Return latents, noise and text, the same numbers on both sides."
        g = torch.Generator().manual_seed(0)
        width = json.loads((self.folder / "unet" / "config.json").read_text())["cross_attention_dim"]

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=g).to(self.device)

        return draw(1, 4, frames, size, size), draw(1, 4, frames, size, size), draw(1, 77, width)

    def forward(self, tick: Clock, frames: int, size: int, out: str | None = None) -> None:
        "Run the network, without gradients."
        x, _, text = self.question(frames, size)
        with torch.no_grad():
            while True:
                said = self.net().eval()(x, torch.tensor([500]).to(x.device), text).sample
                if out:
                    torch.save(said.cpu(), out)
                tick()

    def forward_backward(self, tick: Clock, frames: int, size: int, checkpointing: bool = False) -> None:
        "Compute loss and gradients of what learns, no more."
        x, noise, text = self.question(frames, size)
        net = self.net().train()
        net.requires_grad_(False)
        learning = [
            p.requires_grad_() for n, p in net.named_parameters() if any(part in n for part in LEARNS)
        ]
        if checkpointing:
            net.enable_gradient_checkpointing()
        else:
            net.disable_gradient_checkpointing()
        try:
            while True:
                loss = torch.nn.functional.mse_loss(
                    net(x, torch.tensor([500]).to(x.device), text).sample, noise
                )
                loss.backward()
                grads = [p.grad for p in learning if p.grad is not None]
                facts = dict(
                    loss=loss.item(),
                    gradient=float(torch.stack([g.norm() for g in grads]).norm()),
                    with_gradient=len(grads),
                    learn=len(learning),
                )
                for p in learning:
                    p.grad = None
                del loss, grads
                tick(**facts)
        finally:
            net.disable_gradient_checkpointing()  # the next job says for itself

    def run(self, job: dict[str, Any], tick: Clock) -> None:
        "Run one job's loop until the driver has seen enough."
        how = {k: v for k, v in job.items() if k != "job"}
        run = getattr(self, job["job"])
        torch.manual_seed(0)
        tick.start()
        with contextlib.suppress(Enough):
            run(tick, **how)
        tick.tell(ended=True)


class Ours(Side):
    "Run tune_a_video_nbs, from the checkout on PYTHONPATH."

    def net(self) -> Any:
        return self.pipe().unet

    def pipe(self) -> Any:
        if self.unet is None:
            from tune_a_video_nbs.pipeline import TuneAVideoPipeline

            self.unet = TuneAVideoPipeline.from_pretrained(self.folder).to(self.device)
            self.unet.set_progress_bar_config(disable=True)
        return self.unet

    def guided(self, tick: Clock, frames: int, size: int) -> None:
        "Run steps of guided sampling."
        self.pipe()(
            WORDS,
            latents=self.question(frames, size)[0],
            num_inference_steps=500,
            guidance_scale=7.5,
            output_type="latent",
            callback_on_step_end=lambda *_: tick(),
        )

    def inversion(self, tick: Clock, frames: int, size: int) -> None:
        "Run steps of inversion."
        self.pipe().invert(
            latents=self.question(frames, size)[0],
            prompt="",
            num_inference_steps=500,
            callback_on_step_end=lambda *_: tick(),
        )

    def tuning(self, tick: Clock, frames: int, size: int, checkpointing: bool = False) -> None:
        "Run steps of tuning."
        clip = torch.randint(256, (frames, 8 * size, 8 * size, 3), dtype=torch.uint8).numpy()
        self.pipe().tune(
            clip,
            CAPTION,
            steps=10**6,
            lr=3e-5,
            batch=1,
            gradient_checkpointing=checkpointing,
            callback=lambda *_: tick(),
        )


class Clips:
    "Stand in for decord: a clip already in memory, so that the authors' loop waits for no decoder."

    def __init__(self, path: str, width: int, height: int) -> None:
        self.frames = torch.randint(256, (64, height, width, 3), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.frames)

    def get_batch(self, which: list[int]) -> torch.Tensor:
        return self.frames[which]


def ignore(*args: Any, **kwargs: Any) -> None:
    "Do nothing."


def without_video_libraries() -> None:
    "Replace what the authors read and write clips with: it is not timed, so it need not be there."
    for name in ("decord", "imageio", "torchvision"):
        sys.modules[name] = ModuleType(name)
    vars(sys.modules["decord"]).update(VideoReader=Clips, bridge=SimpleNamespace(set_bridge=ignore))


class Theirs(Side):
    """Run showlab/Tune-A-Video, from the checkout on PYTHONPATH.

    Its own functions are called; their progress bars are where we wait."""

    def net(self) -> Any:
        if self.unet is None:
            from tuneavideo.models.unet import UNet3DConditionModel

            self.unet = UNet3DConditionModel.from_pretrained(self.folder, subfolder="unet").to(self.device)
        return self.unet

    def pipe(self) -> Any:
        from diffusers import AutoencoderKL, DDIMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer
        from tuneavideo.pipelines.pipeline_tuneavideo import TuneAVideoPipeline

        def part(kind: Any, name: str) -> Any:
            return kind.from_pretrained(str(self.folder), subfolder=name)

        pipe = TuneAVideoPipeline(
            vae=part(AutoencoderKL, "vae"),
            text_encoder=part(CLIPTextModel, "text_encoder"),
            unet=self.net().eval(),
            tokenizer=part(CLIPTokenizer, "tokenizer"),
            scheduler=part(DDIMScheduler, "scheduler"),
        ).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def guided(self, tick: Clock, frames: int, size: int) -> None:
        "Run steps of guided sampling."
        self.pipe()(
            WORDS,
            video_length=frames,
            height=8 * size,
            width=8 * size,
            latents=self.question(frames, size)[0],
            num_inference_steps=500,
            guidance_scale=7.5,
            callback=lambda *_: tick(),
        )

    def inversion(self, tick: Clock, frames: int, size: int) -> None:
        "Run steps of inversion."
        from tuneavideo import util

        def waiting(steps: Iterable[int]) -> Iterator[int]:
            for i in steps:
                yield i
                tick()

        pipe = self.pipe()
        util.tqdm = waiting
        pipe.scheduler.set_timesteps(500)
        util.ddim_inversion(pipe, pipe.scheduler, self.question(frames, size)[0], 500, prompt="")

    def tuning(self, tick: Clock, frames: int, size: int, checkpointing: bool = False) -> None:
        "Run steps of tuning."
        import train_tuneavideo
        from omegaconf import OmegaConf

        self.unet = None
        tick.start()  # their script loads the network itself

        class Bar:
            set_description = ignore
            set_postfix = ignore

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                "Take what a progress bar takes."

            def update(self, steps: int = 1) -> None:
                tick()

        train_tuneavideo.tqdm = Bar
        with tempfile.TemporaryDirectory() as out:
            train_tuneavideo.main(
                **OmegaConf.create(
                    dict(
                        pretrained_model_path=str(self.folder),
                        output_dir=out,
                        max_train_steps=10**6,
                        validation_steps=10**9,
                        checkpointing_steps=10**9,
                        train_data=dict(
                            video_path="",
                            prompt=CAPTION,
                            n_sample_frames=frames,
                            width=8 * size,
                            height=8 * size,
                        ),
                        validation_data=dict(num_inv_steps=50),
                        seed=0,
                        mixed_precision="no",
                        gradient_checkpointing=checkpointing,
                        enable_xformers_memory_efficient_attention=False,
                    )
                )
            )


def main(kind: str, folder: str, device: str, threads: int) -> None:
    replies = sys.stdout
    sys.stdout = sys.stderr  # what libraries print is no reply
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)
    if kind == "theirs":
        without_video_libraries()
        side: Side = Theirs(folder, device)
    else:
        side = Ours(folder, device)
    tick = Clock(device, replies)
    tick.tell(ready=True)
    for line in sys.stdin:
        side.run(json.loads(line), tick)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
