"""One process that holds one network and runs its steps when asked: ours, or the authors'. Started by run.py, once for each side.

It reads one JSON line, a job, and then runs that job's own loop: after every step it writes a line and waits for the next one, so that two workers take turns.
This file runs under both Pythons, so each side imports its own libraries late."""

import ctypes
import gc
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

LEARNS = ("attn1.to_q", "attn2.to_q", "attn_temp")
CAPTION, WORDS = "a red star is bouncing on a night sky", "a blue heart is bouncing on a night sky"


class Enough(Exception):
    "The driver has seen enough steps of this job."


class Clock:
    "Called after each step of a loop: tells the driver what the step took, and waits until it is asked for another."

    def __init__(self, device, replies):
        self.cuda, self.replies = device == "cuda", replies

    def start(self):
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system,
            if os.path.exists(CLEAR):
                Path(CLEAR).write_text("5")  # and the high-water mark to where the process stands
        self.before, self.first = self._bytes("VmRSS"), True
        self._go()

    def _go(self):
        self.began, self.worked = time.perf_counter(), time.process_time()

    def _bytes(self, field):
        if self.cuda:
            return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines[field].split()[0]) * 1024

    def __call__(self, **facts):
        if self.cuda:
            torch.cuda.synchronize()
        took = dict(seconds=time.perf_counter() - self.began, cpu_seconds=time.process_time() - self.worked)
        peak = self._bytes("VmHWM")
        self.tell(**took, peak=peak, above=peak - self.before, **facts)
        if sys.stdin.readline().strip() != '"again"':
            raise Enough
        self.start() if self.first else self._go()  # memory counts from the second step on: now all weights are loaded, all states made
        self.first = False

    def tell(self, **facts):
        print(json.dumps(facts), file=self.replies, flush=True)


CLEAR = "/proc/self/clear_refs"  # Linux: writing 5 sets VmHWM back to VmRSS


class Side:
    "What both sides share: the same questions, and loops around the bare network."

    def __init__(self, folder, device):
        self.folder, self.device, self.unet = Path(folder), device, None

    def question(self, frames, size):
        "Latents, noise and text, the same numbers on both sides."
        g = torch.Generator().manual_seed(0)
        width = json.loads((self.folder / "unet" / "config.json").read_text())["cross_attention_dim"]

        def draw(*shape):
            return torch.randn(shape, generator=g).to(self.device)

        return draw(1, 4, frames, size, size), draw(1, 4, frames, size, size), draw(1, 77, width)

    def forward(self, tick, frames, size, out=None):
        "The network once, without gradients."
        x, _, text = self.question(frames, size)
        with torch.no_grad():
            while True:
                said = self.net().eval()(x, torch.tensor([500]).to(x.device), text).sample
                if out:
                    torch.save(said.cpu(), out)
                tick()

    def forward_backward(self, tick, frames, size, checkpointing=False):
        "Loss and gradients of what learns, no more."
        (x, noise, text), net = self.question(frames, size), self.net().train()
        net.requires_grad_(False)
        learning = [
            p.requires_grad_() for n, p in net.named_parameters() if any(part in n for part in LEARNS)
        ]
        (net.enable_gradient_checkpointing if checkpointing else net.disable_gradient_checkpointing)()
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

    def run(self, job, tick):
        how = {k: v for k, v in job.items() if k != "job"}
        run = getattr(self, job["job"])
        torch.manual_seed(0)
        tick.start()
        try:
            run(tick, **how)
        except Enough:
            pass
        tick.tell(ended=True)


class Ours(Side):
    "tune_a_video_nbs, from the checkout on PYTHONPATH."

    def net(self):
        return self.pipe().unet

    def pipe(self):
        if self.unet is None:
            from tune_a_video_nbs.pipeline import TuneAVideoPipeline

            self.unet = TuneAVideoPipeline.from_pretrained(self.folder).to(self.device)
            self.unet.set_progress_bar_config(disable=True)
        return self.unet

    def guided(self, tick, frames, size):
        self.pipe()(
            WORDS,
            latents=self.question(frames, size)[0],
            num_inference_steps=500,
            guidance_scale=7.5,
            output_type="latent",
            callback_on_step_end=lambda *_: tick(),
        )

    def inversion(self, tick, frames, size):
        self.pipe().invert(
            latents=self.question(frames, size)[0],
            prompt="",
            num_inference_steps=500,
            callback_on_step_end=lambda *_: tick(),
        )

    def tuning(self, tick, frames, size, checkpointing=False):
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
    "In place of decord: a clip already in memory, so that the authors' loop waits for no decoder."

    def __init__(self, path, width, height):
        self.frames = torch.randint(256, (64, height, width, 3), dtype=torch.uint8)

    def __len__(self):
        return len(self.frames)

    def get_batch(self, which):
        return self.frames[which]


def without_video_libraries():
    "What the authors read and write clips with is not timed, so it need not be there."

    for name in ("decord", "imageio", "torchvision"):
        sys.modules[name] = ModuleType(name)
    sys.modules["decord"].VideoReader, sys.modules["decord"].bridge = (
        Clips,
        SimpleNamespace(set_bridge=lambda name: None),
    )


class Theirs(Side):
    "showlab/Tune-A-Video, from the checkout on PYTHONPATH. Its own functions are called; their progress bars are where we wait."

    def net(self):
        if self.unet is None:
            from tuneavideo.models.unet import UNet3DConditionModel

            self.unet = UNet3DConditionModel.from_pretrained(self.folder, subfolder="unet").to(self.device)
        return self.unet

    def pipe(self):
        from diffusers import AutoencoderKL, DDIMScheduler
        from transformers import CLIPTextModel, CLIPTokenizer
        from tuneavideo.pipelines.pipeline_tuneavideo import TuneAVideoPipeline

        def part(kind, name):
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

    def guided(self, tick, frames, size):
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

    def inversion(self, tick, frames, size):
        from tuneavideo import util

        def waiting(steps):
            for i in steps:
                yield i
                tick()

        pipe, util.tqdm = self.pipe(), waiting
        pipe.scheduler.set_timesteps(500)
        util.ddim_inversion(pipe, pipe.scheduler, self.question(frames, size)[0], 500, prompt="")

    def tuning(self, tick, frames, size, checkpointing=False):
        import train_tuneavideo
        from omegaconf import OmegaConf

        self.unet = None
        tick.start()  # their script loads the network itself

        class Bar:
            set_description = set_postfix = lambda *_, **__: None

            def update(*_):
                return tick()

        train_tuneavideo.tqdm = lambda *_, **__: Bar()
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


def main(kind, folder, device, threads):
    replies, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no reply
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if threads:
        torch.set_num_threads(threads)
    if kind == "theirs":
        without_video_libraries()
    side, tick = {"ours": Ours, "theirs": Theirs}[kind](folder, device), Clock(device, replies)
    tick.tell(ready=True)
    for line in sys.stdin:
        side.run(json.loads(line), tick)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
