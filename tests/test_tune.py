"What chapter 14 claims, for all three families of Stable Diffusion; and all else is as it was."

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from diffusers import DDIMScheduler
from small_nets import SHAPES, conditions, small_unet
from small_tuning import clip_and_text, off, rng, run, values
from torch import nn

from tune_a_video_nbs.ddpm import PREDICTION_TYPES, snr
from tune_a_video_nbs.errors import DivergedError, InputError, TuneAVideoError
from tune_a_video_nbs.inflate import VideoUNet, inflate
from tune_a_video_nbs.levels import LEVELS, level_weights, weigh_levels
from tune_a_video_nbs.tune import (
    StopTuning,
    clip_loss,
    draw_noise,
    trainable_names,
    trainable_parameters,
    tune,
)
from tune_a_video_nbs.weights import (
    fingerprint,
    float32_master_weights,
    forget_learned,
    learned_modules,
    own_parameters,
    unwrapped,
)


class Adapted(nn.Module):
    "A linear layer with a small one beside it, under the names that peft gives them."

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        down = nn.Linear(base_layer.in_features, 2, bias=False)
        up = nn.Linear(2, base_layer.out_features, bias=False)
        self.lora_A = nn.ModuleDict({"default": down})
        self.lora_B = nn.ModuleDict({"default": up})

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def adapt(net):
    "Put an adapter around every query of sparse-causal attention."
    for layer in list(net.modules()):
        if hasattr(layer, "attn1"):
            layer.attn1.to_q = Adapted(layer.attn1.to_q)
    return net


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
    assert not any(p.grad is not None for p in net.parameters())
    assert not net.is_gradient_checkpointing and not net.training


def test_the_optimizer_holds_only_what_learns(tmp_path):
    names = trainable_names(run(checkpoint=tmp_path / "c"))
    state = torch.load(tmp_path / "c", weights_only=True)
    assert list(state["params"]) == names and len(state["optimizer"]["state"]) == len(names)


@pytest.mark.parametrize("parts", [("attn1.to_q", "atn_temp"), "attn", "to_", "attn1.to", "emp", (), ("",)])
def test_parts_are_whole_words_of_names(parts):
    "`attn` is in no name as a word of its own, though it is in many as letters."
    net = inflate(small_unet())
    if parts == ("",):
        assert trainable_names(net, parts) == [n for n, _ in net.named_parameters()]
        return
    with pytest.raises(
        InputError, match="trainable_modules is empty" if parts == () else "no parameter's name"
    ):
        run(net, trainable_modules=parts)


def test_a_lone_word_is_not_taken_letter_by_letter():
    net = inflate(small_unet())
    assert trainable_names(net, "attn_temp") == trainable_names(net, ("attn_temp",)) != []
    run(net, trainable_modules="attn_temp")
    assert learned_modules(net) == ("attn_temp",)


def test_checkpointing_and_callbacks_change_nothing():
    plain, seen = run(), []

    def watch(step, loss, weights):
        seen.append((step, sorted(weights)))
        torch.randn(3)  # a preview may draw, from anywhere but the run's generator

    assert off(plain, run(callback=watch)) < 1e-5  # on several threads sums are rounded anew
    assert off(plain, run(gradient_checkpointing=True)) < 1e-5
    assert [step for step, _ in seen] == [0, 1, 2, 3] and seen[0][1] == sorted(trainable_names(plain))


# ---- wrappers


def wrappers():
    "Name -> a function that wraps a network."
    kinds = {"parallel": nn.DataParallel}  # without a GPU it calls the network inside
    if hasattr(torch.compiler, "set_stance"):
        kinds["compiled"] = torch.compile
        kinds["both"] = compiled_and_parallel
    return kinds


def compiled_and_parallel(net):
    return nn.DataParallel(torch.compile(net))


@pytest.mark.parametrize("kind", wrappers())
def test_a_wrapped_network_learns_the_same(kind, monkeypatch, tmp_path):
    net = inflate(small_unet())
    wrapped = wrappers()[kind](net)
    assert unwrapped(wrapped) is net
    assert trainable_names(wrapped) == trainable_names(net)
    assert fingerprint(wrapped, []) == fingerprint(net, [])
    if kind == "parallel":
        run(net, wrapped=wrapped, checkpoint=tmp_path / "c")
    else:
        with torch.compiler.set_stance("force_eager"):  # the wrapper counts here, not the compiler
            run(net, wrapped=wrapped, checkpoint=tmp_path / "c")
    assert off(net, run(checkpoint=tmp_path / "c")) < 1e-5  # the checkpoint's names are plain


def test_an_adapted_network_learns_its_own_weights():
    net = adapt(inflate(small_unet()))
    plain = inflate(small_unet())
    before = values(net)
    assert trainable_names(net) == trainable_names(plain)
    assert fingerprint(net, trainable_names(net)) == fingerprint(plain, trainable_names(plain))
    run(net)
    changed = [n for n, p in net.named_parameters() if not p.equal(before[n])]
    assert len(changed) == len(trainable_names(net)) and not any("lora" in n for n in changed)
    assert any("base_layer" in n for n in changed)


def test_a_fused_network_learns_the_same():
    net = inflate(small_unet())
    names, known = list(own_parameters(net)), fingerprint(net, [])
    net.fuse_qkv_projections()
    assert any("to_kv" in n for n, _ in net.named_parameters())
    assert list(own_parameters(net)) == names and fingerprint(net, []) == known
    run(net)
    plain = values(run())
    assert max((p - plain[n]).abs().max() for n, p in own_parameters(net).items()) < 1e-5


def test_a_compiled_block_changes_no_name():
    net = inflate(small_unet())
    names = trainable_names(net)
    net.mid_block = torch.compile(net.mid_block)
    assert any("_orig_mod" in n for n, _ in net.named_parameters())
    assert trainable_names(net) == names


def test_what_is_no_network_is_refused():
    for strange in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))):
        with pytest.raises(TuneAVideoError, match="no UNet2DConditionModel"):
            unwrapped(strange)


# ---- the loss


def min_snr_until_now(alphas_cumprod, prediction_type, gamma):
    "What stood in `tune` before there was a choice, word for word."
    ratio = snr(alphas_cumprod)
    if prediction_type == "epsilon":
        return (gamma / ratio).clamp(max=1)
    if prediction_type == "sample":
        return ratio.clamp(max=gamma)
    return ratio.clamp(max=gamma) / (ratio + 1)


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_the_loss_is_weighed(kind, levels):
    net = inflate(small_unet())
    latents, text, _ = clip_and_text(net)
    scheduler = DDIMScheduler(prediction_type=kind)
    t, noise = draw_noise(latents, 3, 1000, rng())
    ones = [clip_loss(net, latents, text, t[i : i + 1], noise[i : i + 1], scheduler) for i in range(3)]
    ones = torch.stack(ones)
    weights = level_weights(scheduler.alphas_cumprod, kind, levels)
    weighted = clip_loss(net, latents, text, t, noise, scheduler, weights)
    torch.testing.assert_close(weighted, (ones * weights[t]).mean())
    if levels == "uniform":
        assert weighted.equal(clip_loss(net, latents, text, t, noise, scheduler))
    else:
        assert (weighted - ones.mean()).abs() > 1e-3  # the weights do something


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_min_snr_is_what_it_was_to_the_bit(kind):
    abar = DDIMScheduler().alphas_cumprod
    for gamma in (5.0, 0.1):
        want = min_snr_until_now(abar, kind, gamma)
        assert level_weights(abar, kind, "min_snr", gamma).equal(want)
        assert weigh_levels(DDIMScheduler(prediction_type=kind), min_snr=gamma)[0].equal(want)


def test_each_way_to_weigh_is_another_run():
    ways = [dict(), dict(min_snr=0.1), dict(levels="min_snr"), dict(levels="clean_data")]
    ways += [dict(levels="clean_data", cap=1.5), dict(prediction_type="v_prediction")]
    nets = [run(**way) for way in ways]
    assert all(off(a, b) > 1e-5 for i, a in enumerate(nets) for b in nets[:i])
    assert off(run(levels="min_snr"), run(min_snr=5)) == 0
    assert off(run(levels="uniform"), nets[0]) == 0


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(min_snr=0.0), "gamma is 0.0; it must be positive"),
        (dict(levels="clean_data", cap=-1), "cap is -1"),
        (dict(levels="snr"), "use one of uniform, min_snr, clean_data"),
        (dict(levels="clean_data", min_snr=5.0), "give one"),
    ],
)
def test_weights_that_cannot_be(wrong, message):
    net = inflate(small_unet())
    before, config = values(net), dict(net.config)
    with pytest.raises(InputError, match=message):
        run(net, **wrong)
    assert all(p.equal(before[n]) for n, p in net.named_parameters()) and dict(net.config) == config


# ---- the optimizer, precision, accumulation


def tuned_by_hand(betas, accelerator=None, accumulate=1, steps=4):
    "The same run without `tune`: plain PyTorch, or accelerate's precision, accumulation and clipping."
    net = inflate(small_unet()).requires_grad_(False)
    params = list(trainable_parameters(net).values())
    for p in params:
        p.requires_grad_()
    opt = torch.optim.AdamW(params, 1e-3, betas=betas, weight_decay=1e-2)
    latents, text, _ = clip_and_text(net)
    g, scheduler = rng(), DDIMScheduler()
    for _ in range(steps):
        if accelerator is None:
            clip_loss(net, latents, text, *draw_noise(latents, 1, 1000, g), scheduler).backward()
            torch.nn.utils.clip_grad_norm_(params, 1.0)
        else:
            for _ in range(accumulate):
                with accelerator.accumulate(), accelerator.autocast():
                    loss = clip_loss(net, latents, text, *draw_noise(latents, 1, 1000, g), scheduler)
                accelerator.backward(loss)
            accelerator.clip_grad_norm_(params, 1.0)
        opt.step()
        opt.zero_grad()
    return net


def test_beta2_is_the_authors():
    "Their train_tuneavideo.py has adam_beta2 = 0.999."
    assert off(run(), tuned_by_hand((0.9, 0.999))) < 1e-6
    assert off(run(betas=(0.9, 0.99)), tuned_by_hand((0.9, 0.99))) < 1e-6
    assert off(run(), run(betas=(0.9, 0.99))) > 1e-6
    for wrong in ((0.9, 1.0), (0.9,), (-0.1, 0.9)):
        with pytest.raises(InputError, match="betas are"):
            run(betas=wrong)


@pytest.fixture
def fresh_accelerate():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.mark.parametrize("mixed_precision, accumulate", [("no", 1), ("no", 2), ("bf16", 1), ("bf16", 2)])
def test_precision_and_accumulation_as_accelerate_does_them(mixed_precision, accumulate, fresh_accelerate):
    accelerator = Accelerator(
        cpu=True, mixed_precision=mixed_precision, gradient_accumulation_steps=accumulate
    )
    want = tuned_by_hand((0.9, 0.999), accelerator, accumulate)
    assert off(run(mixed_precision=mixed_precision, accumulate=accumulate), want) < 1e-6


def test_gathered_batches_are_one_batch():
    assert off(run(batch=2), run(accumulate=2)) < 1e-4 < off(run(batch=2), run())
    half = run(inflate(small_unet()).bfloat16(), accumulate=2)
    assert off(half, run(accumulate=2)) < 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_learns_in_float32(dtype):
    "With AdamW on bare bfloat16, a step of 1e-5 is lost in rounding: most weights never move."
    full, seen = inflate(small_unet()).to(dtype).float(), []
    half = inflate(small_unet()).to(dtype)
    start = values(half)

    def watch(step, loss, weights):
        seen.append({w.dtype for w in weights.values()})

    run(full, lr=1e-4, steps=8)
    run(half, lr=1e-4, steps=8, callback=watch)
    assert {p.dtype for p in half.parameters()} == {dtype} and seen == [{torch.float32}] * 8
    names, a, b = trainable_names(half), values(full), values(half)
    x = torch.cat([(a[n] - start[n].float()).flatten() for n in names])
    y = torch.cat([(b[n].float() - start[n].float()).flatten() for n in names])
    assert torch.cosine_similarity(x, y, dim=0) > 0.8  # they learn the same thing
    assert 0.8 < y.norm() / x.norm() < 1.25
    assert all(p.equal(start[n]) for n, p in half.named_parameters() if n not in names)


def test_a_half_network_can_be_sampled_while_it_learns():
    "`cast_training_params` would leave it with layers of two precisions, which cannot be multiplied."
    net = inflate(small_unet()).bfloat16()
    latents, text, _ = clip_and_text(net)
    seen = []

    def watch(step, loss, weights):
        with torch.no_grad():
            seen.append(net(latents.bfloat16(), 10, text.bfloat16()).sample)

    run(net, callback=watch)
    assert {x.dtype for x in seen} == {torch.bfloat16} and not seen[0].equal(seen[-1])
    params = trainable_parameters(net)
    with float32_master_weights(params) as (masters, update_network):
        name = next(iter(params))
        masters[name].data += 1
        assert not params[name].float().allclose(masters[name])
        update_network()
        assert params[name].equal(masters[name].bfloat16())


def test_mixed_precision():
    full, mixed = run(), run(mixed_precision="bf16")
    assert off(full, mixed) > 0 and {p.dtype for p in mixed.parameters()} == {torch.float32}
    with pytest.raises(InputError, match="needs a GPU"):
        run(mixed_precision="fp16")
    with pytest.raises(InputError, match="use one of"):
        run(mixed_precision="half")


# ---- all else is as it was


def test_accelerate_is_not_touched(fresh_accelerate):
    "Neither after tuning nor, as the callback sees it, during."
    mine = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    seen = []

    def watch(*_):
        seen.append((mine.mixed_precision, mine.gradient_accumulation_steps, mine.device.type))

    run(callback=watch)
    run(mixed_precision="bf16", accumulate=2, callback=watch)
    watch()
    assert seen == [("bf16", 3, "cpu")] * 9


def ends():
    "Name -> what a callback raises at the second step, and what comes of it."
    return {
        "whole": None,
        "stopped": StopTuning(),
        "Ctrl-C": KeyboardInterrupt(),
        "error": ValueError("mine"),
    }


@pytest.mark.parametrize("end", ends())
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_switch_comes_back(end, checkpointing):
    "Which parameters want gradients, gradients somebody gathered, modes of single layers, checkpointing."
    net = inflate(small_unet())
    net.mid_block.train()
    for i, p in enumerate(net.parameters()):
        p.requires_grad_(i % 3 > 0)
        if i % 3 == 1:
            p.grad = torch.full_like(p, 7.0)

    def switches():
        grads = {n: p.grad for n, p in net.named_parameters()}
        wants = {n: p.requires_grad for n, p in net.named_parameters()}
        modes = {n: m.training for n, m in net.named_modules()}
        return wants, modes, {n for n, g in grads.items() if g is not None and (g == 7).all()}

    def stop(step, loss, weights):
        if step == 1 and ends()[end]:
            raise ends()[end]

    before = switches()
    if end in ("whole", "stopped"):
        run(net, callback=stop, gradient_checkpointing=checkpointing)
    else:
        with pytest.raises(type(ends()[end])):
            run(net, callback=stop, gradient_checkpointing=checkpointing)
    assert switches() == before and not net.is_gradient_checkpointing
    fresh = run(steps=4 if end == "whole" else 2)
    assert off(net, fresh) < 1e-5  # gradients of somebody else were not learned from


def test_checkpointing_that_was_on_stays_on():
    net = inflate(small_unet())
    net.enable_gradient_checkpointing()
    run(net, gradient_checkpointing=True)
    assert net.is_gradient_checkpointing


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, KeyboardInterrupt])
def test_a_failing_callback_is_passed_on_and_what_was_learned_stays(error):
    "The network is that of the steps done, in any precision, and knows what learned."
    mine = error("mine")

    def fail(step, loss, weights):
        if step == 1:
            raise mine

    for make in (lambda: inflate(small_unet()), lambda: inflate(small_unet()).bfloat16()):
        net = make()
        with pytest.raises(error) as caught:
            run(net, callback=fail)
        assert caught.value is mine
        assert off(net, run(make(), steps=2)) < 1e-3
        assert learned_modules(net) != ()


def test_a_sample_in_the_callback_reads_its_own_words():
    "`tune` adds nothing to the network: what is asked there is answered as after the run."
    net = inflate(small_unet("sdxl"))
    latents, _, _ = clip_and_text(net)
    other = conditions(net, 1, rng(5))
    seen = []

    @torch.no_grad()
    def ask(*_):
        seen.append(net(latents, 500, **other).sample)

    run(net, steps=1, callback=ask)
    ask()
    torch.testing.assert_close(seen[0], seen[1])
    hooks = [h for m in net.modules() for h in (*m._forward_pre_hooks, *m._forward_hooks)]
    assert hooks == []


def test_what_learned_is_noted_and_travels(tmp_path, caplog):
    net = inflate(small_unet())
    assert learned_modules(net) == ()
    run(net, trainable_modules=("attn_temp",))
    run(net, trainable_modules=("attn_temp", "conv_in"))
    assert learned_modules(net) == ("attn_temp", "conv_in")
    net.save_pretrained(tmp_path)
    again = VideoUNet.from_pretrained(tmp_path)
    assert learned_modules(again) == ("attn_temp", "conv_in") and not caplog.records
    forget_learned(again)
    assert learned_modules(again) == ()


# ---- what cannot be learned from


def test_sdxl_without_its_conditions():
    net = inflate(small_unet("sdxl"))
    latents, text, _ = clip_and_text(net)
    with pytest.raises(ValueError, match="needs added_cond_kwargs"):
        tune(net, latents, text, DDIMScheduler(), 1)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    "change, message",
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
def test_clips_and_captions_that_do_not_fit(change, message):
    net = inflate(small_unet())
    before, config = values(net), dict(net.config)
    z, w, _ = clip_and_text(net)
    with pytest.raises(ValueError, match=message):
        tune(net, *change(z, w), DDIMScheduler(), 1)
    assert all(p.equal(before[n]) and p.requires_grad for n, p in net.named_parameters())
    assert dict(net.config) == config


def test_a_loss_that_explodes_stops_before_it_is_saved(tmp_path):
    run(checkpoint=tmp_path / "c", every=1)
    old = (tmp_path / "c").read_bytes()
    net = inflate(small_unet())
    net.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(DivergedError, match="smaller lr"):
        run(net)
    net = inflate(small_unet())
    steps = []

    def poison(*_):
        steps.append(1)
        net.conv_out.weight.data.fill_(float("inf"))

    with pytest.raises(DivergedError):
        run(net, steps=8, checkpoint=tmp_path / "c", every=3, callback=poison)
    assert steps == [1] and (tmp_path / "c").read_bytes() == old


def test_a_last_step_that_explodes_is_noticed():
    "Its loss is fine; the weights after it are not, and no other step will tell."
    net = inflate(small_unet())
    weight = net.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DivergedError, match="not finite after step 0"):
        run(net, steps=1)


# ---- checkpoints


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(lr=2e-3), "lr=0.001, and now it is 0.002"),
        (dict(generator=rng(3)), "seed=0"),
        (dict(batch=2), "batch=1"),
        (dict(min_snr=5.0), "min_snr=None"),
        (dict(levels="min_snr"), "min_snr=None, and now it is 5.0"),
        (dict(levels="clean_data"), "min_snr=None, and now it is 'clean_data, cap=60'"),
        (dict(steps=3), "more than the 3 asked"),
        (dict(betas=(0.9, 0.99)), r"betas=\(0.9, 0.999\), and now it is \(0.9, 0.99\)"),
        (dict(trainable_modules="attn_temp"), "another network: .*to_q.* missing here"),
        (dict(prediction_type="v_prediction"), "epsilon"),
    ],
)
def test_a_checkpoint_of_other_settings(change, message, tmp_path):
    run(checkpoint=tmp_path / "c")
    net = inflate(small_unet())
    before = values(net)
    with pytest.raises(InputError, match=message):
        run(net, **dict(steps=6, checkpoint=tmp_path / "c") | change)
    assert all(p.equal(before[n]) for n, p in net.named_parameters())
    assert learned_modules(net) == ()


def test_a_checkpoint_of_before_goes_on_with_its_own_betas(tmp_path):
    "Checkpoints were made with 0.99 until beta2 became the authors': the file says so, and the message too."
    run(checkpoint=tmp_path / "c", betas=(0.9, 0.99))
    with pytest.raises(
        InputError, match=r"begun with betas=\(0.9, 0.99\), and now it is \(0.9, 0.999\): set"
    ):
        run(steps=6, checkpoint=tmp_path / "c")
    resumed = run(steps=6, checkpoint=tmp_path / "c", betas=(0.9, 0.99))
    assert off(resumed, run(steps=6, betas=(0.9, 0.99))) < 1e-5


def test_a_checkpoint_of_before_goes_on_with_its_own_weights(tmp_path):
    "It says `min_snr` and knows of no other way: None, or gamma."
    run(checkpoint=tmp_path / "plain")
    run(checkpoint=tmp_path / "snr", min_snr=5)
    assert torch.load(tmp_path / "plain", weights_only=True)["about"]["min_snr"] is None
    assert torch.load(tmp_path / "snr", weights_only=True)["about"]["min_snr"] == 5
    with pytest.raises(InputError, match="begun with min_snr=5"):
        run(steps=6, checkpoint=tmp_path / "snr", levels="clean_data")
    resumed = run(steps=6, checkpoint=tmp_path / "snr", levels="min_snr")
    assert off(resumed, run(steps=6, min_snr=5)) < 1e-5
    run(checkpoint=tmp_path / "clean", levels="clean_data")
    with pytest.raises(
        InputError, match="begun with min_snr='clean_data, cap=60', and now it is 'clean_data, cap=9'"
    ):
        run(steps=6, checkpoint=tmp_path / "clean", levels="clean_data", cap=9)
    run(steps=6, checkpoint=tmp_path / "clean", levels="clean_data")


def test_a_checkpoint_of_another_network_or_clip(tmp_path):
    run(checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match="is of another network"):
        run(inflate(small_unet(block_out_channels=(16, 48))), checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match="with dtype="):
        run(inflate(small_unet()).bfloat16(), checkpoint=tmp_path / "c")
    louder = small_unet()
    louder.conv_in.weight.data.mul_(1.1)
    with pytest.raises(InputError, match="with network="):
        run(inflate(louder), checkpoint=tmp_path / "c")
    net = inflate(small_unet())
    latents, text, _ = clip_and_text(net, frames=5)
    with pytest.raises(InputError, match="with frames=3"):
        tune(net, latents, text, DDIMScheduler(), 6, 1e-3, checkpoint=tmp_path / "c")
    with pytest.raises(InputError, match="with clip="):
        tune(net, latents[:, :, :3], text, DDIMScheduler(), 6, 1e-3, checkpoint=tmp_path / "c")


def test_ctrl_c_loses_nothing(tmp_path):
    def stop(step, loss, weights):
        if step == 2:
            raise KeyboardInterrupt

    for make in (lambda: inflate(small_unet()), lambda: inflate(small_unet()).bfloat16()):
        net, path = make(), tmp_path / str(make().dtype)
        with pytest.raises(KeyboardInterrupt):
            run(net, steps=6, checkpoint=path, every=2, callback=stop)
        assert off(net, run(make(), steps=3)) < 1e-3  # three steps were done, and are there
        assert off(run(make(), steps=6, checkpoint=path, every=2), run(make(), steps=6)) < 1e-3
    assert len(list(tmp_path.iterdir())) == 2
