"""Measure speed and memory: this library and, with --peer, the authors' code beside it, in turn, in one run.

python benchmarks/run.py                             # this library alone, a fifth of SD 1.5's width
python benchmarks/run.py --peer ../Tune-A-Video --peer-python ../peer/bin/python
python benchmarks/run.py --size sd15 --peer ...      # SD 1.5's own width, 860 million parameters
python benchmarks/run.py --before ../older-checkout  # this library against an earlier self
python benchmarks/run.py --growth                    # cost against frames and size"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
SIZES = {  # the network, clip and latents, steps counted after the first
    "fifth": dict(
        unet=dict(sample_size=64, cross_attention_dim=768, block_out_channels=(64, 128, 256, 256)),
        frames=8,
        size=32,
        reps=3,
    ),
    "sd15": dict(unet=dict(sample_size=64, cross_attention_dim=768), frames=8, size=32, reps=2),
    "tiny": dict(
        unet=dict(sample_size=64, cross_attention_dim=768, block_out_channels=(32, 64, 64, 64)),
        frames=3,
        size=16,
        reps=2,
    ),  # to try this file
}
JOBS = {  # what is timed: the words for a table, and what the worker is told
    "forward + backward": dict(job="forward_backward"),
    "forward + backward, checkpointing": dict(job="forward_backward", checkpointing=True),
    "inversion step": dict(job="inversion"),
    "guided step": dict(job="guided"),
    "tuning step, as each runs it": dict(job="tuning"),
    "tuning step, as each runs it, checkpointing": dict(job="tuning", checkpointing=True),
}


def write_model(folder: str | Path, size: str) -> Path:
    """Write a whole Stable Diffusion with random weights, in the authors' layout, which both sides read.

    VAE and text encoder have their full size, the network is as wide as `size` says."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from tune_a_video_nbs.authors import save_for_authors
    from tune_a_video_nbs.bases import FAMILIES, SD_NOISE, SD_VAE
    from tune_a_video_nbs.inflate import VideoUNet
    from tune_a_video_nbs.ldm import model_path
    from tune_a_video_nbs.pipeline import TuneAVideoPipeline

    torch.manual_seed(0)
    unet = VideoUNet(frame_norm="shared", **SIZES[size]["unet"])
    for n, p in unet.named_parameters():
        if "attn_temp.to_out" in n:
            torch.nn.init.normal_(p, std=0.02)  # zero at first; a comparison of outputs should see it
    tokenizer = CLIPTokenizer.from_pretrained(
        model_path("sprites"), subfolder="tokenizer", model_max_length=77
    )
    noise = {k: v for k, v in SD_NOISE.items() if k != "skip_prk_steps"}
    pipe = TuneAVideoPipeline(
        vae=AutoencoderKL(**SD_VAE),
        text_encoder=CLIPTextModel(CLIPTextConfig(**FAMILIES["sd15"]["text"][0])),
        unet=unet,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=False),
    )
    return save_for_authors(pipe, folder)


class Worker:
    "Hold a process with one side, and ask it in turn over a pipe."

    def __init__(
        self, kind: str, python: str, checkout: str | Path, folder: str | Path, device: str, threads: int
    ) -> None:
        env = os.environ | dict(
            PYTHONPATH=str(Path(checkout).resolve()),
            HF_HUB_OFFLINE="1",
            TOKENIZERS_PARALLELISM="false",
            TQDM_DISABLE="1",
        )
        if device == "cpu":
            env["ACCELERATE_USE_CPU"] = "true"
        if threads:
            env["OMP_NUM_THREADS"] = str(threads)
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), kind, str(folder), device, str(threads)],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.hear()

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: see its last words above (exit code {self.process.wait()})")
        return json.loads(line)

    def ask(self, what: Any) -> dict[str, Any]:
        print(json.dumps(what), file=self.process.stdin, flush=True)
        return self.hear()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_rate(device: str, n: int = 2048, reps: int = 3) -> tuple[float, float]:
    """Return how many operations a second this machine attains now, by the clock and by processor time.

    It is the best of a few products of square matrices."""
    a = torch.randn(n, n, device=device)
    b = torch.randn(n, n, device=device)
    seconds, cpu_seconds = [], []
    for _ in range(reps):
        wait_for(device)
        began, cpu_began = time.perf_counter(), time.process_time()
        a @ b
        wait_for(device)
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    operations = 2 * n**3
    return operations / min(seconds), operations / min(cpu_seconds)


Steps = dict[str, list[dict[str, Any]]]  # side -> what it said of each step


def in_turn(
    sides: dict[str, Worker], job: dict[str, Any], reps: int, rate: Callable[[], tuple[float, float]]
) -> tuple[Steps, list[tuple[float, float]]]:
    """Do one job on all sides: a first step that does not count, then `reps` rounds.

    Return what each side said of each step, and the machine's rate in each round."""
    seen = {name: [worker.ask(job)] for name, worker in sides.items()}
    rates = []
    for _ in range(reps):
        rates.append(rate())
        for name, worker in sides.items():
            seen[name].append(worker.ask("again"))
    for worker in sides.values():
        assert worker.ask("enough") == dict(ended=True)
    return seen, rates


def summary(seen: Steps, rates: list[tuple[float, float]]) -> dict[str, Any]:
    "Return medians of one job, and of the ratios of neighbours in time."
    out: dict[str, Any] = {}
    for name, steps in seen.items():
        counted = [s["seconds"] for s in steps[1:]]
        facts = {k: v for k, v in steps[-1].items() if k not in ("seconds", "cpu_seconds", "peak", "above")}
        out[name] = dict(
            seconds=statistics.median(counted),
            all_seconds=counted,
            first_seconds=steps[0]["seconds"],
            cpu_seconds=statistics.median(s["cpu_seconds"] for s in steps[1:]),
            peak_bytes=max(s["peak"] for s in steps[1:]),
            bytes_above_start=max(s["above"] for s in steps[1:]),
            **facts,
        )
        if name != "ours":
            for key, ratio in (("seconds", "times_ours"), ("cpu_seconds", "cpu_times_ours")):
                out[name][ratio] = statistics.median(
                    theirs[key] / ours[key] for theirs, ours in zip(steps[1:], seen["ours"][1:])
                )
    wall, cpu = (statistics.median(r) for r in zip(*rates))
    return out | dict(matmul_rate=wall, cpu_matmul_rate=cpu)


def flops(size: str, frames: int, side: int) -> dict[str, int]:
    "Count multiplications and additions of one step of ours, on tensors without numbers."
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    from tune_a_video_nbs.inflate import VideoUNet
    from tune_a_video_nbs.tune import trainable_names

    def count(clips: int, learn: bool) -> int:
        x = torch.empty(clips, 4, frames, side, side)
        text = torch.empty(clips, 77, net.config.cross_attention_dim)
        for n, p in net.named_parameters():
            p.requires_grad_(learn and n in names)
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(learn):
            out = net(x, 500, text).sample
            if learn:
                out.square().mean().backward()
        return counter.get_total_flops()

    with FakeTensorMode():
        net = VideoUNet(frame_norm="shared", **SIZES[size]["unet"])
        names = set(trainable_names(net))
        train = count(1, True)
        return {
            "forward_backward": train,
            "tuning": train,
            "inversion": count(1, False),
            "guided": count(2, False),
        }


def same_answer(sides: dict[str, Worker], how: dict[str, Any], scratch: Path) -> dict[str, float]:
    """Return how far the outputs of all sides lie from ours, relative to their size.

    They must compute the same, or their times say nothing."""
    for name, worker in sides.items():
        worker.ask(dict(job="forward", out=str(scratch / f"{name}.pt"), **how))
        worker.ask("enough")
    outs = {name: torch.load(scratch / f"{name}.pt") for name in sides}
    ours = outs.pop("ours")
    off = {name: float((out - ours).norm() / ours.norm()) for name, out in outs.items()}
    wrong = [name for name, d in off.items() if not d < 1e-4]
    if wrong:
        raise SystemExit(
            f"{wrong[0]} computes something else: its output is off by {off[wrong[0]]:.2g} of its size"
        )
    return off


def commit(checkout: str | Path) -> str:
    "Return the commit that a checkout is at."
    found = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def processor() -> str:
    "Return the processor's name."
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine(args: Namespace) -> dict[str, Any]:
    "Return facts on this machine."
    return dict(
        processor=processor(),
        cores=os.cpu_count(),
        threads=args.threads or torch.get_num_threads(),
        device=args.device,
        load=os.getloadavg()[0],
        python=platform.python_version(),
        torch=torch.__version__,
    )


def compare(args: Namespace, folder: Path, sides: dict[str, Worker]) -> dict[str, Any]:
    "Do all jobs on all sides."
    how = {key: SIZES[args.size][key] for key in ("frames", "size")}
    work = flops(args.size, how["frames"], how["size"])
    jobs: dict[str, Any] = {}
    same = same_answer(sides, how, folder)
    reps = args.reps or SIZES[args.size]["reps"]
    for words in args.jobs:
        seen, rates = in_turn(sides, JOBS[words] | how, reps, partial(matmul_rate, args.device))
        job = jobs[words] = summary(seen, rates) | dict(flops=work[JOBS[words]["job"]])
        job["share_of_matmul"] = job["flops"] / job["matmul_rate"] / job["ours"]["seconds"]
        job["cpu_share_of_matmul"] = job["flops"] / job["cpu_matmul_rate"] / job["ours"]["cpu_seconds"]
        told = ", ".join(tell(name, job[name]) for name in sides)
        share = f"{job['share_of_matmul']:.0%} of the matmul rate"
        print(f"{words}: {told}; {share}", file=sys.stderr, flush=True)
    return dict(kind="compare", **how, same_answer=same, jobs=jobs)


def tell(name: str, side: dict[str, Any]) -> str:
    "Return what one side took, in words."
    took = f"{name} {side['seconds']:.2f} s"
    if name == "ours":
        return took
    return f"{took} ({side['times_ours']:.2f} times ours; {side['cpu_times_ours']:.2f} by processor time)"


GROWTH = dict(frames=(4, 8, 16, 24, 32), size=(16, 24, 32, 40, 48))


def growth(args: Namespace, folder: Path, sides: dict[str, Worker]) -> dict[str, Any]:
    "Measure ours alone, at other lengths and sizes: rounds over all of them, medians of the rounds."
    base = dict(frames=8, size=32)
    seen: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for _ in range(args.reps or 2):  # in each round each has one step that does not count, and one that does
        for what, values in GROWTH.items():
            for v in values:
                for job in ("forward_backward", "forward"):
                    ours = sides["ours"]
                    ours.ask(dict(job=job) | base | {what: v})
                    step = ours.ask("again")
                    ours.ask("enough")
                    seen.setdefault((what, v, job), []).append(step)
    rows = [
        dict(
            along=what,
            value=v,
            job=job,
            seconds=statistics.median(s["seconds"] for s in steps),
            bytes_above_start=max(s["above"] for s in steps),
        )
        for (what, v, job), steps in seen.items()
    ]
    return dict(kind="growth", **base, rows=rows)


def arguments() -> Namespace:
    "Read the command line."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--size", choices=SIZES, default="fifth", help="width of the network")
    p.add_argument("--peer", metavar="CHECKOUT", help="a checkout of github.com/showlab/Tune-A-Video")
    p.add_argument("--peer-python", metavar="PYTHON", help="a Python that runs it: see README.md")
    p.add_argument("--before", metavar="CHECKOUT", help="another checkout of this library")
    p.add_argument(
        "--jobs",
        nargs="+",
        choices=JOBS,
        default=list(JOBS),
        metavar="JOB",
        help=f"some of: {'; '.join(JOBS)}",
    )
    p.add_argument("--reps", type=int, help="rounds that count; 0 or nothing: as suits the size")
    p.add_argument(
        "--growth",
        action="store_true",
        help="this library alone, with more and more frames, and larger and larger ones",
    )
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument(
        "--threads", type=int, default=0, help="of torch, on all sides; torch's own choice without"
    )
    p.add_argument(
        "--out", type=Path, help="where results go, without ending; benchmarks/results/SIZE without"
    )
    args = p.parse_args()
    if bool(args.peer) != bool(args.peer_python):
        p.error("--peer and --peer-python belong together")
    return args


def main() -> None:
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    began = time.time()
    measure = growth if args.growth else compare
    out = args.out or HERE / "results" / ("growth" if args.growth else args.size)
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_model(scratch, args.size)
        facts = machine(args)
        start = partial(Worker, folder=folder, device=args.device, threads=args.threads)
        sides = {"ours": start("ours", sys.executable, HERE.parent)}
        if args.peer and not args.growth:
            sides["theirs"] = start("theirs", args.peer_python, args.peer)
        if args.before and not args.growth:
            sides["before"] = start("ours", sys.executable, args.before)
        found = measure(args, folder, sides)
        for worker in sides.values():
            worker.close()
    commits = {"ours": commit(HERE.parent)}
    if args.peer:
        commits["theirs"] = commit(args.peer)
    if args.before:
        commits["before"] = commit(args.before)
    # This machine's folders are nobody's business.
    named = {args.peer: "CHECKOUT", args.peer_python: "PYTHON", args.before: "BEFORE"}
    words = [named.get(word) or shlex.quote(word) for word in sys.argv[1:]]
    about = dict(
        command=" ".join(["python benchmarks/run.py", *words]),
        model=args.size,
        machine=facts,
        commits=commits,
        minutes=round((time.time() - began) / 60, 1),
    )
    found = about | found
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    from report import report

    report(out.with_suffix(".json"))


if __name__ == "__main__":
    main()
