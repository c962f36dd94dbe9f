"The one training loop: formulas, checkpoints, a full disk, and death at any moment (this file run alone)."

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from small_nets import small_unet
from small_tuning import Bomb, off, rng, run

from tune_a_video_nbs.errors import DivergedError, FileAccessError, InputError
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.train import Curve, ema_decay, fit, load_checkpoint, lr_factor, nearly_equal, read_curve
from tune_a_video_nbs.tuned import save_tuned


def small_fit(steps=6, average=False, **kwargs):
    "Three numbers learn the mean of what is drawn."
    w = torch.zeros(3, requires_grad=True)
    g = rng()

    def loss_fn(step):
        return (w - torch.randn(3, generator=g)).square().sum()

    means = fit(loss_fn, dict(w=w), steps, **dict(lr=0.1, generator=g) | kwargs)
    return means["w"] if average else w.detach()


# ---- formulas


@pytest.mark.parametrize("warmup", [0, 1, 7, 50])
def test_the_rate_is_that_of_diffusers(warmup):
    "Its cosine times its linear rise, which begins one step later: with rate zero."
    opt = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    cosine = get_cosine_schedule_with_warmup(opt, 0, 50).lr_lambdas[0]
    rise = get_constant_schedule_with_warmup(opt, warmup).lr_lambdas[0]
    for step in range(50):
        assert lr_factor(step, 50, warmup, decay=False) == pytest.approx(rise(step + 1))
        assert lr_factor(step, 50, warmup) == pytest.approx(rise(step + 1) * cosine(step))


def test_the_average_is_that_of_diffusers():
    "From the second step on; at the first it takes the weights as they are, ours keeps a tenth of the start."
    path, after_first = [], []

    def watch(step, loss, average):
        path.append(w.detach().clone())
        if step == 0:
            after_first.append(average["w"].clone())

    w = torch.zeros(3, requires_grad=True)
    g = rng()
    ours = fit(
        lambda step: (w - torch.randn(3, generator=g)).square().sum(),
        dict(w=w),
        30,
        0.1,
        ema=0.5,
        callback=watch,
    )["w"]
    torch.testing.assert_close(after_first[0], 0.9 * path[0])  # from zero
    theirs = EMAModel(after_first, decay=0.5)
    theirs.optimization_step = 1
    for step, weights in enumerate(path[1:], start=1):
        assert ema_decay(step, 0.5) == pytest.approx(theirs.get_decay(step + 1))
        theirs.step([torch.nn.Parameter(weights)])
    torch.testing.assert_close(ours, theirs.shadow_params[0])


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.9, 0.999), (0.5, 0.9)])
def test_the_optimizer_is_torchs_own(betas):
    w = torch.zeros(3, requires_grad=True)
    g = rng()
    opt = torch.optim.AdamW([w], lr=0.1, betas=betas, weight_decay=1e-2)
    for _ in range(6):
        opt.zero_grad()
        (w - torch.randn(3, generator=g)).square().sum().backward()
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        opt.step()
    torch.testing.assert_close(small_fit(decay=False, betas=betas), w.detach())


def test_gathered_batches_are_one_batch():
    w = torch.zeros(3, requires_grad=True)
    g = rng()

    def mean_of_two(step):
        return sum((w - torch.randn(3, generator=g)).square().sum() for _ in range(2)) / 2

    fit(mean_of_two, dict(w=w), 6, 0.1)
    torch.testing.assert_close(small_fit(accumulate=2), w.detach())
    assert not torch.allclose(small_fit(), w.detach())


def test_a_scaled_loss_gives_the_same_and_its_scale_is_kept(tmp_path):
    "float16 on a GPU scales its loss; torch has such a scaler for the CPU too."

    def train(steps, checkpoint=None):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        weights = small_fit(steps, decay=False, checkpoint=checkpoint, scaler=scaler)
        return weights, scaler.get_scale()

    plain = small_fit(decay=False)
    want, scale = train(6)
    train(3, tmp_path / "c")
    got, resumed = train(6, tmp_path / "c")
    assert torch.allclose(want, plain, atol=1e-6) and torch.allclose(got, want)
    assert resumed == scale == 64 * 2**3


def test_an_overflow_of_the_scaled_loss_skips_the_step():
    "What GradScaler is for: the scale falls, and no weight is harmed."
    scaler = torch.amp.GradScaler("cpu", init_scale=3e38)
    w = torch.ones(3, requires_grad=True)
    fit(lambda step: (1e3 * w).square().sum(), dict(w=w), 1, 0.1, scaler=scaler)
    assert w.tolist() == [1, 1, 1] and scaler.get_scale() < 3e38


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_diverges_says_so_at_its_last_step_too(steps, tmp_path):
    "The last step's loss is a number, its gradient is not; no later step would notice."
    w = torch.ones(3, requires_grad=True)

    def loss_fn(step):
        if step < steps - 1:
            return w.square().sum()
        return (0 * w).sqrt().sum()

    with pytest.raises(DivergedError, match=f"not finite after step {steps - 1}"):
        fit(loss_fn, dict(w=w), steps, 0.1)
    w.data.fill_(1)
    with pytest.raises(DivergedError):
        fit(loss_fn, dict(w=w), steps, 0.1, checkpoint=tmp_path / "c", every=1)
    assert (tmp_path / "c").exists() == (steps > 1)  # what was whole was saved, and only that
    with pytest.raises(DivergedError, match="loss is nan at step 0"):
        fit(lambda step: w.sum() * float("nan"), dict(w=w), steps, 0.1)


def test_a_diary_goes_on(tmp_path):
    path = tmp_path / "loss.jsonl"
    small_fit(20, callback=Curve(path, every=5))
    small_fit(10, callback=Curve(path, every=5))  # as if resumed from an earlier checkpoint
    lines = path.read_text().splitlines()
    assert len(lines) == 6 and [line["step"] for line in read_curve(path)] == [5, 10, 15, 20]
    seconds = [json.loads(line)["seconds"] for line in lines]
    assert seconds == sorted(seconds)


# ---- checkpoints


def test_stopped_and_resumed(tmp_path):
    def stop(step, loss, average):
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small_fit(20, ema=0.9, checkpoint=tmp_path / "c", every=5, callback=stop)
    resumed = small_fit(20, True, ema=0.9, checkpoint=tmp_path / "c", every=5)
    torch.testing.assert_close(resumed, small_fit(20, True, ema=0.9))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(betas=(0.9, 0.999)), r"betas=\(0.9, 0.99\), and now it is \(0.9, 0.999\)"),
        (dict(weight_decay=0.1), "weight_decay=0.01"),
        (dict(about=dict(size=4)), "size=3, and now it is 4"),
        (dict(about=dict(size=3, shape=[1.0, 2.1])), "shape="),
        (dict(steps=3), "more than the 3 asked"),
    ],
)
def test_a_checkpoint_of_other_settings(change, message, tmp_path):
    about = dict(size=3, shape=[1.0, 2.0])
    small_fit(checkpoint=tmp_path / "c", about=about)
    old = (tmp_path / "c").read_bytes()
    with pytest.raises(InputError, match=message):
        small_fit(**dict(steps=8, checkpoint=tmp_path / "c", about=about) | change)
    assert (tmp_path / "c").read_bytes() == old
    small_fit(8, checkpoint=tmp_path / "c", about=dict(size=3, shape=[1.00001, 2], new=1))


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    small_fit(checkpoint=tmp_path / "c")
    w = torch.full((3,), 7.0, requires_grad=True)
    opt = torch.optim.AdamW([w], betas=(0.9, 0.999))
    with pytest.raises(InputError):
        load_checkpoint(tmp_path / "c", dict(w=w), opt, None)
    assert w.tolist() == [7, 7, 7] and not opt.state and opt.param_groups[0]["betas"] == (0.9, 0.999)
    with pytest.raises(InputError, match="another network: v is missing there"):
        load_checkpoint(tmp_path / "c", dict(v=w), opt, None)


def test_nearly_equal():
    assert nearly_equal([1.0, ("a", 2)], [1.00001, ["a", 2]]) and nearly_equal(None, None)
    for a, b in [([1.0], [1.0, 2.0]), (1.0, 1.01), ("a", "b"), (1.0, None), (1, 2)]:
        assert not nearly_equal(a, b)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    mark = tmp_path / "was-here"
    torch.save(dict(params={}, bomb=Bomb(mark)), tmp_path / "bomb")
    with pytest.raises(InputError, match="nothing in it was run"):
        small_fit(checkpoint=tmp_path / "bomb")
    assert not mark.exists()
    torch.load(tmp_path / "bomb", weights_only=False)
    assert mark.exists()  # the bomb is a live one


def test_damaged_checkpoints(tmp_path):
    small_fit(checkpoint=tmp_path / "c")
    whole = (tmp_path / "c").read_bytes()
    for part in (whole[:-1000], whole[:100], b"", b"hello"):
        (tmp_path / "c").write_bytes(part)
        with pytest.raises(InputError, match="damaged"):
            small_fit(8, checkpoint=tmp_path / "c")
    for other in (dict(a=1), [1]):
        torch.save(other, tmp_path / "c")
        with pytest.raises(InputError, match="no checkpoint"):
            small_fit(8, checkpoint=tmp_path / "c")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_no_space_left(tmp_path):
    "The system refuses to write beyond 5 kB: old files stay whole, no halves are left, learning is not lost."
    import resource

    net = run(checkpoint=tmp_path / "c")
    save_tuned(net, tmp_path / "a.safetensors")
    old = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    again, losses = inflate(small_unet()), []

    def watch(step, loss, weights):
        losses.append(loss)

    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(FileAccessError, match="could not be written"):
            save_tuned(net, tmp_path / "a.safetensors")
        with pytest.raises(FileAccessError, match="checkpoint of step 6 could not"):
            run(again, steps=8, checkpoint=tmp_path / "c", every=2, callback=watch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old and len(losses) == 2
    assert off(again, run(steps=6)) < 1e-5


# ---- death at any moment: the part below runs in a process of its own, on one thread, and forks

STEPS = 7
EVERY = 2
MOMENTS = [
    ("step", 0),
    ("step", 3),
    ("half", 0),
    ("half", 2),
    ("written", 0),
    ("written", 1),
    ("replaced", 1),
    ("step", 6),
    ("half", 3),
    ("replaced", 3),
]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watched(kill):
    "Die the n-th time this kind of moment comes: after a step, amid writing, before and after the renaming."
    count = dict.fromkeys(("step", "half", "written", "replaced"), 0)
    save, replace = torch.save, os.replace

    def now(kind):
        count[kind] += 1
        return (kind, count[kind] - 1) == kill

    def half_save(state, file):
        if now("half"):
            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            file.flush()
            die()
        save(state, file)

    def loud_replace(a, b):
        if now("written"):
            die()
        replace(a, b)
        if now("replaced"):
            die()

    def after_step(step, loss, weights):
        if now("step"):
            die()

    torch.save, os.replace = half_save, loud_replace
    return after_step


def child(folder, kill=None):
    "Fork, tune with a checkpoint, save what was learned; the child's number."
    number = os.fork()
    if number:
        return number
    try:
        net = run(steps=STEPS, checkpoint=folder / "run.ckpt", every=EVERY, callback=watched(kill))
        save_tuned(net, folder / "end.safetensors")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(number):
    return os.waitpid(number, 0)[1]


def finish(folder):
    "Run to the end in a child, and return the weights it saved."
    assert wait(child(folder)) == 0
    left = sorted(p.name for p in folder.iterdir())
    assert left == ["end.safetensors", "run.ckpt"], left  # the halves of the killed were swept
    return load_file(folder / "end.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.allclose(a[n], b[n], atol=1e-6) for n in a)


def all_deaths(root):
    torch.set_num_threads(1)
    (root / "unbroken").mkdir()
    start = time.time()
    want = finish(root / "unbroken")
    whole = time.time() - start
    for kill in MOMENTS:
        folder = root / f"{kill[0]}-{kill[1]}"
        folder.mkdir()
        status = wait(child(folder, kill))
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, f"{kill} never came"
        assert same(finish(folder), want), f"killed at {kill}, the weights are others"
    dice, killed = random.Random(0), 0
    for i in range(8):  # and from outside, wherever it may be, again and again
        folder = root / f"outside-{i // 4}"
        folder.mkdir(exist_ok=True)
        number = child(folder)
        time.sleep(whole * dice.uniform(0.05, 0.6))
        os.kill(number, signal.SIGKILL)
        killed += os.WIFSIGNALED(wait(number))
        if i % 4 == 3:
            assert same(finish(folder), want)
    assert killed > 0
    (root / "other").mkdir()
    end = save_tuned(run(generator=rng(1), steps=STEPS), root / "other" / "end.safetensors")
    assert not same(load_file(end), want)  # the comparison can fail
    print(f"unbroken run {whole:.2f} s; {len(MOMENTS)} chosen and {killed} chance deaths, all resumed alike")


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs to fork")
def test_killed_at_any_moment_and_resumed(tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, tmp_path]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


if __name__ == "__main__":
    all_deaths(Path(sys.argv[1]))
