"What chapter 13 claims, for all three families of Stable Diffusion; faults of disk, file and user; and death at any moment (this file run by itself)."

import io
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
from accelerate import Accelerator
from diffusers import DDIMScheduler
from small_nets import SHAPES, conditions, small_unet

from tune_a_video_nbs import ddpm
from tune_a_video_nbs.files import part_name, save_atomic
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.train import fit
from tune_a_video_nbs.tune import clip_loss, draw_noise, min_snr_weights, trainable_names, tune
from tune_a_video_nbs.tuned import load_tuned, save_tuned


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def job(net, f=3):
    "A clip, its text, and SDXL's conditions where the network wants them."
    g = rng(1)
    cond = conditions(net, 1, g)
    return (
        torch.randn(1, 4, f, 8, 8, generator=g),
        cond["encoder_hidden_states"],
        dict(added_cond_kwargs=cond.get("added_cond_kwargs")),
    )


def run(net=None, steps=4, lr=1e-3, prediction_type="epsilon", **kwargs):
    "Tune a small network; the network."
    net = net or inflate(small_unet())
    latents, text, more = job(net)
    tune(net, latents, text, DDIMScheduler(prediction_type=prediction_type), steps, lr, **more | kwargs)
    return net


def values(net):
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def off(a, b):
    return max((p.float() - q.float()).abs().max().item() for p, q in zip(a.parameters(), b.parameters()))


# ---- what learns


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_should_learn_learns_and_nothing_else(shape, checkpointing, positions):
    "Reentrant checkpointing, the authors' default, would leave the down blocks out; see chapter 12."
    net = inflate(small_unet(shape), frame_positions=positions)
    before = values(net)
    run(net, gradient_checkpointing=checkpointing)
    assert [n for n, p in net.named_parameters() if not p.equal(before[n])] == trainable_names(net)
    assert positions == any("frame_positions" in n for n in trainable_names(net))
    assert (
        not any(p.requires_grad or p.grad is not None for p in net.parameters())
        and not net.is_gradient_checkpointing
        and not net.training
    )


def test_the_optimizer_holds_only_what_learns(tmp_path):
    names = trainable_names(run(checkpoint=tmp_path / "c"))
    state = torch.load(tmp_path / "c", weights_only=True)
    assert list(state["params"]) == names and len(state["optimizer"]["state"]) == len(names)


def test_names_that_do_not_exist():
    net = inflate(small_unet())
    assert trainable_names(net, "attn_temp") == trainable_names(
        net, ("attn_temp",)
    )  # a lone word is not taken letter by letter
    for learns in (("attn1.to_q", "atn_temp"), ()):
        with pytest.raises(ValueError, match="no parameter's name contains"):
            run(net, learns=learns)


def test_checkpointing_and_callbacks_change_nothing():
    plain, seen = run(), []

    def watch(step, loss, weights):
        seen.append((step, loss, sorted(weights)))
        torch.randn(3)  # a preview may draw, from anywhere but the run's generator

    assert (
        off(plain, run(callback=watch)) < 1e-5 and off(plain, run(gradient_checkpointing=True)) < 1e-5
    )  # on several threads sums are rounded anew
    assert [s for s, _, _ in seen] == [0, 1, 2, 3] and seen[0][2] == sorted(trainable_names(plain))


# ---- the loss


@pytest.mark.parametrize(
    "kind, formula",
    [
        ("epsilon", lambda s: min(s, 5) / s),
        ("v_prediction", lambda s: min(s, 5) / (s + 1)),
        ("sample", lambda s: min(s, 5)),
    ],
)
def test_min_snr_by_hand(kind, formula):
    abar = torch.tensor([0.99, 0.9, 0.5, 0.01], dtype=torch.float64)  # SNR 99, 9, 1 and 1/99
    want = torch.tensor([formula(s) for s in (99.0, 9.0, 1.0, 1 / 99)], dtype=torch.float64)
    torch.testing.assert_close(min_snr_weights(abar, kind), want)
    net, (latents, text, more) = inflate(small_unet()), job(small_unet())
    scheduler = DDIMScheduler(prediction_type=kind)
    t, noise = draw_noise(latents, 3, 1000, rng())
    ones = torch.stack(
        [clip_loss(net, latents, text, t[i : i + 1], noise[i : i + 1], scheduler) for i in range(3)]
    )
    weighted = (ones * min_snr_weights(scheduler.alphas_cumprod, kind)[t]).mean()
    torch.testing.assert_close(clip_loss(net, latents, text, t, noise, scheduler, min_snr=5.0), weighted)
    assert (weighted - ones.mean()).abs() > 1e-3  # the weights do something


def test_min_snr_without_any_signal():
    assert min_snr_weights(torch.tensor([0.5, 0.0])).tolist() == [
        1,
        1,
    ]  # schedules rescaled to zero terminal SNR
    with pytest.raises(ValueError, match="positive"):
        run(min_snr=0.0)
    with pytest.raises(ValueError, match="prediction_type"):
        min_snr_weights(torch.tensor([0.5]), "velocity")


def test_each_prediction_type_and_weight_is_another_run():
    nets = [run(prediction_type=k, min_snr=m) for k in ("epsilon", "v_prediction") for m in (None, 0.1)]
    assert all(off(a, b) > 1e-5 for i, a in enumerate(nets) for b in nets[:i])


# ---- precision, accumulation, accelerate


def test_gathered_batches_are_one_batch():
    assert off(run(batch=2), run(accumulate=2)) < 1e-4 < off(run(batch=2), run())

    def half(**k):
        return run(inflate(small_unet()).bfloat16(), **k)

    assert off(half(accumulate=2), run(accumulate=2)) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_in_float32(dtype):
    "With AdamW on bare bfloat16, a step of 1e-5 is lost in rounding: most weights never move."
    full, seen = inflate(small_unet()).to(dtype).float(), []
    half = inflate(small_unet()).to(dtype)
    start = values(half)
    run(full, lr=1e-4, steps=8)
    run(
        half,
        lr=1e-4,
        steps=8,
        callback=lambda step, loss, weights: seen.append({w.dtype for w in weights.values()}),
    )
    assert {p.dtype for p in half.parameters()} == {dtype} and seen == [{torch.float32}] * 8
    names, a, b = trainable_names(half), values(full), values(half)
    moved = {n: (a[n] - start[n].float(), b[n].float() - start[n].float()) for n in names}
    x, y = (torch.cat([m[i].flatten() for m in moved.values()]) for i in (0, 1))
    assert (
        torch.cosine_similarity(x, y, dim=0) > 0.8 and 0.8 < y.norm() / x.norm() < 1.25
    )  # they learn the same thing
    assert all(p.equal(start[n]) for n, p in half.named_parameters() if n not in names)


def test_mixed_precision():
    full, mixed = run(), run(mixed_precision="bf16")
    assert off(full, mixed) > 0 and {p.dtype for p in mixed.parameters()} == {torch.float32}
    with pytest.raises(ValueError, match="needs a GPU"):
        run(mixed_precision="fp16")
    with pytest.raises(ValueError, match="use one of"):
        run(mixed_precision="half")


def test_accelerate_is_left_as_it_was():
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    run()
    run(mixed_precision="bf16", accumulate=2)
    assert (mine.mixed_precision, mine.gradient_accumulation_steps, mine.device.type) == ("bf16", 3, "cpu")


def test_a_scaled_loss_gives_the_same_and_its_scale_is_kept(tmp_path):
    "float16 on a GPU scales its loss; torch has such a scaler for the CPU too."

    def train(steps, checkpoint=None, scaled=True):
        accelerator = Accelerator(cpu=True)
        if scaled:
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        w, g = torch.zeros(3, requires_grad=True), rng()
        fit(
            lambda step: (w - torch.randn(3, generator=g)).square().sum(),
            dict(w=w),
            steps,
            0.1,
            decay=False,
            clip_norm=0,
            checkpoint=checkpoint,
            generator=g,
            accelerator=accelerator,
        )
        return w.detach(), scaled and accelerator.scaler.get_scale()

    plain, (want, scale) = train(6, scaled=False)[0], train(6)
    train(3, tmp_path / "c")
    got, resumed = train(6, tmp_path / "c")
    assert torch.allclose(want, plain, atol=1e-6) and got.equal(want) and resumed == scale == 64 * 2**3


def test_sdxl_without_its_conditions():
    net = inflate(small_unet("sdxl"))
    latents, text, _ = job(net)
    with pytest.raises(ValueError, match="needs added_cond_kwargs"):
        tune(net, latents, text, DDIMScheduler(), 1)
    assert not any(p.requires_grad for p in net.parameters())


# ---- what cannot be learned from


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda z, w: (z[0], w), "one clip is"),
        (lambda z, w: (z.repeat(2, 1, 1, 1, 1), w), "one clip is"),
        (lambda z, w: (z[:, :3], w), "with 4 channels"),
        (lambda z, w: (z[:, :, :0], w), "empty"),
        (lambda z, w: (z * float("nan"), w), "latents hold NaN"),
        (lambda z, w: (z, w / 0), "text holds NaN"),
        (lambda z, w: (z, w[0]), "one caption is"),
        (lambda z, w: (z, w[..., :7]), "this network reads"),
    ],
)
def test_clips_and_captions_that_do_not_fit(change, said):
    net = inflate(small_unet())
    before = values(net)
    z, w, _ = job(net)
    with pytest.raises(ValueError, match=said):
        tune(net, *change(z, w), DDIMScheduler(), 1)
    assert all(p.equal(before[n]) for n, p in net.named_parameters())


def test_a_loss_that_explodes_stops_before_it_is_saved(tmp_path):
    run(checkpoint=tmp_path / "c", every=1)
    old = (tmp_path / "c").read_bytes()
    net = inflate(small_unet())
    net.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="smaller lr"):
        run(net)
    net = inflate(small_unet())
    step = []

    def poison(*_):
        step.append(1)
        net.conv_out.weight.data.fill_(float("inf"))

    with pytest.raises(FloatingPointError):
        run(net, steps=8, checkpoint=tmp_path / "c", every=3, callback=poison)
    assert step == [1] and (tmp_path / "c").read_bytes() == old


# ---- checkpoints


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(lr=2e-3), "lr=0.001, and now it is 0.002"),
        (dict(generator=rng(3)), "seed=0"),
        (dict(batch=2), "batch=1"),
        (dict(min_snr=5.0), "min_snr=None"),
        (dict(steps=3), "more than the 3 asked"),
        (dict(learns="attn_temp"), "another network: .*to_q.* missing here"),
        (dict(prediction_type="v_prediction"), "epsilon"),
    ],
)
def test_a_checkpoint_of_other_settings(change, said, tmp_path):
    run(checkpoint=tmp_path / "c")
    net = inflate(small_unet())
    before = values(net)
    with pytest.raises(ValueError, match=said):
        run(net, **dict(steps=6, checkpoint=tmp_path / "c") | change)
    assert all(p.equal(before[n]) for n, p in net.named_parameters())


def test_a_checkpoint_of_another_network_or_clip(tmp_path):
    run(checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="is of another network"):
        run(inflate(small_unet(block_out_channels=(16, 48))), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="with dtype="):
        run(inflate(small_unet()).bfloat16(), checkpoint=tmp_path / "c")
    louder = small_unet()
    louder.conv_in.weight.data.mul_(1.1)
    with pytest.raises(ValueError, match="with network="):
        run(inflate(louder), checkpoint=tmp_path / "c")
    net = inflate(small_unet())
    latents, text, _ = job(net, f=5)
    with pytest.raises(ValueError, match="with frames=3"):
        tune(net, latents, text, DDIMScheduler(), 6, 1e-3, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="with clip="):
        tune(net, latents[:, :, :3], text, DDIMScheduler(), 6, 1e-3, checkpoint=tmp_path / "c")


class Bomb:
    "What a pickle can hold: a call, made by whoever reads it."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_code_in_a_file_is_never_run(tmp_path):
    mark = tmp_path / "was-here"
    for name in ("bomb.ckpt", "bomb.safetensors"):
        torch.save(dict(params={}, bomb=Bomb(mark)), tmp_path / name)
    with pytest.raises(ValueError, match="nothing in it was run"):
        run(checkpoint=tmp_path / "bomb.ckpt")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_tuned(inflate(small_unet()), tmp_path / "bomb.safetensors")
    assert not mark.exists()
    torch.load(tmp_path / "bomb.ckpt", weights_only=False)
    assert mark.exists()  # the bomb is a live one


def test_damaged_checkpoints(tmp_path):
    run(checkpoint=tmp_path / "c")
    whole = (tmp_path / "c").read_bytes()
    for part in (whole[:-1000], whole[:100], b"", b"hello"):
        (tmp_path / "c").write_bytes(part)
        with pytest.raises(ValueError, match="damaged"):
            run(checkpoint=tmp_path / "c", steps=6)
    torch.save(dict(a=1), tmp_path / "c")
    with pytest.raises(ValueError, match="no checkpoint"):
        run(checkpoint=tmp_path / "c")


def test_what_killed_writers_leave_is_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = part_name(tmp_path / "c").name
    old = tmp_path / name.replace(f"-{os.getpid()}-", f"-{dead.pid}-")
    other = tmp_path / old.name.replace(".c.", ".other.c.")
    for p in (old, other):
        p.write_bytes(b"half")
    run(checkpoint=tmp_path / "c")
    assert not old.exists() and other.exists()


# ---- the file of what was learned


def test_saved_and_loaded(tmp_path):
    for shape in SHAPES:
        net = run(inflate(small_unet(shape)))
        save_tuned(net, tmp_path / "a.safetensors", caption="c")
        learned = sum(net.get_parameter(n).numel() for n in trainable_names(net))
        assert 4 * learned < (tmp_path / "a.safetensors").stat().st_size < 4 * learned + 20_000
        other = inflate(small_unet(shape))
        assert load_tuned(other, tmp_path / "a.safetensors")["caption"] == "c" and off(net, other) == 0
    half = inflate(small_unet(shape)).bfloat16()
    load_tuned(half, tmp_path / "a.safetensors")  # the same model in another precision
    assert off(half, net) < 0.02


def test_a_file_of_another_model(tmp_path):
    path = save_tuned(run(), tmp_path / "a.safetensors")
    for net, said in [
        (inflate(small_unet("sdxl")), "does not fit"),
        (inflate(small_unet(), "shared"), "frame_norm='per_frame'"),
    ]:
        with pytest.raises(ValueError, match=said):
            load_tuned(net, path)
    louder = small_unet()
    for p in louder.parameters():
        p.data.mul_(1.05)
    with pytest.warns(UserWarning, match="another image model"):
        load_tuned(inflate(louder), path)
    positions = save_tuned(run(inflate(small_unet(), frame_positions=True)), tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match="add_frame_positions"):
        load_tuned(inflate(small_unet()), positions)


def test_damaged_files(tmp_path):
    net = run()
    whole = bytearray(save_tuned(net, tmp_path / "a.safetensors").read_bytes())
    other = inflate(small_unet())
    before = values(other)
    flipped = whole.copy()
    flipped[-50] ^= 1
    for data, said in [
        (whole[:-1], "no whole"),
        (whole[:5], "no whole"),
        (b"", "no whole"),
        (flipped, "checksum"),
    ]:
        (tmp_path / "b.safetensors").write_bytes(data)
        with pytest.raises(ValueError, match=said):
            load_tuned(other, tmp_path / "b.safetensors")
    net.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        load_tuned(other, save_tuned(net, tmp_path / "n.safetensors"))
    with pytest.raises(FileNotFoundError):
        load_tuned(other, tmp_path / "none.safetensors")
    assert all(p.equal(before[n]) for n, p in other.named_parameters())


# ---- disk and keyboard


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files, and /dev/full")
def test_no_space_left(tmp_path):
    "The system refuses to write beyond 5 kB: old files stay whole, no halves are left, and the network keeps what it has learned."
    import resource

    net = run(checkpoint=tmp_path / "c")
    save_tuned(net, tmp_path / "a.safetensors")
    old, (soft, hard) = (
        {p.name: p.read_bytes() for p in tmp_path.iterdir()},
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    again, losses = inflate(small_unet()), []
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(OSError, match="could not be written"):
            save_tuned(net, tmp_path / "a.safetensors")
        with pytest.raises(OSError, match="checkpoint of step 6 could not"):
            run(
                again,
                steps=8,
                checkpoint=tmp_path / "c",
                every=2,
                callback=lambda s, loss, w: losses.append(loss),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old and len(losses) == 2
    assert off(again, run(steps=6)) < 1e-5

    def full(part):
        os.symlink("/dev/full", part)
        part.write_bytes(b"x" * 100)

    with pytest.raises(OSError, match="No space left"):
        save_atomic(full, tmp_path / "c")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == old


def test_ctrl_c_loses_nothing(tmp_path):
    def stop(step, loss, weights):
        if step == 2:
            raise KeyboardInterrupt

    for make in (lambda: inflate(small_unet()), lambda: inflate(small_unet()).bfloat16()):
        net, path = make(), tmp_path / str(make().dtype)
        with pytest.raises(KeyboardInterrupt):
            run(net, steps=6, checkpoint=path, every=2, callback=stop)
        assert not any(p.requires_grad or p.grad is not None for p in net.parameters()) and not net.training
        assert off(net, run(make(), steps=3)) < 1e-3  # three steps were done, and are there
        assert off(run(make(), steps=6, checkpoint=path, every=2), run(make(), steps=6)) < 1e-3
    assert len(list(tmp_path.iterdir())) == 2


# ---- death at any moment: the part below runs in a process of its own, on one thread, and forks

STEPS, EVERY = 7, 2
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
    "Die the n-th time this kind of moment comes: after a step, in the middle of writing, before and after the renaming."
    count, save, replace = dict.fromkeys(("step", "half", "written", "replaced"), 0), torch.save, os.replace

    def now(kind):
        count[kind] += 1
        return (kind, count[kind] - 1) == kill

    def half_save(state, f):
        if now("half"):
            whole = io.BytesIO()
            save(state, whole)
            f.write(whole.getvalue()[: len(whole.getvalue()) // 2])
            f.flush()
            die()
        save(state, f)

    def loud_replace(a, b):
        if now("written"):
            die()
        replace(a, b)
        if now("replaced"):
            die()

    torch.save, ddpm.os.replace = half_save, loud_replace
    return lambda step, loss, weights: die() if now("step") else None


def child(folder, kill=None):
    "Fork, tune with a checkpoint, save what was learned; the child's number."
    if pid := os.fork():
        return pid
    try:
        net = run(steps=STEPS, checkpoint=folder / "run.ckpt", every=EVERY, callback=watched(kill))
        save_tuned(net, folder / "end.safetensors")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(pid):
    return os.waitpid(pid, 0)[1]


def finish(folder):
    assert wait(child(folder)) == 0
    left = sorted(p.name for p in folder.iterdir())
    assert left == ["end.safetensors", "run.ckpt"], left  # the halves of the killed were swept
    return (folder / "end.safetensors").read_bytes()


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
        assert finish(folder) == want, f"killed at {kill}, the weights are others"
    dice, killed = random.Random(0), 0
    for i in range(8):  # and from outside, wherever it may be, again and again
        folder = root / f"outside-{i // 4}"
        folder.mkdir(exist_ok=True)
        pid = child(folder)
        time.sleep(whole * dice.uniform(0.05, 0.6))
        os.kill(pid, signal.SIGKILL)
        killed += os.WIFSIGNALED(wait(pid))
        if i % 4 == 3:
            assert finish(folder) == want
    assert killed > 0
    other = root / "other"
    other.mkdir()
    end = run(generator=rng(1), steps=STEPS)
    assert save_tuned(end, other / "end.safetensors").read_bytes() != want  # the comparison can fail
    print(
        f"unbroken run {whole:.2f} s; {len(MOMENTS)} chosen and {killed} chance deaths, all resumed to the same {len(want)} bytes"
    )


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="needs to fork")
def test_killed_at_any_moment_and_resumed(tmp_path):
    "torch repeats itself to the bit on one thread only."
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, tmp_path], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


if __name__ == "__main__":
    all_deaths(Path(sys.argv[1]))
