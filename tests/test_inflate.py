"What chapter 12 claims of its one network, for all three families of Stable Diffusion; threads; compiling."

import copy
import json
import shutil
import sysconfig
import threading
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import repeat
from small_nets import SHAPES, conditions, only_clip, randomise, small_unet

from tune_a_video_nbs.authors import load_video_unet
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.inflate import (
    BLOCKS,
    FRAME_NORMS,
    VideoTransformerBlock,
    VideoUNet,
    inflate,
    replace_blocks,
)
from tune_a_video_nbs.ldm import DTYPE_ARGUMENT

HERE = Path(__file__).parent / "parity"
T = torch.tensor([10, 700])
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
both = pytest.mark.parametrize("frame_norm", FRAME_NORMS)


@pytest.fixture(params=SHAPES)
def image(request):
    return small_unet(request.param)


def rng():
    return torch.Generator().manual_seed(1)


@torch.no_grad()
def predict(net, x, cond, t=T):
    return net(x, t, **cond).sample


def awake(image, frame_norm):
    "As if tuned: the temporal layers speak, so that nothing hides behind their zeros."
    return randomise(inflate(image, frame_norm), only="_temp.")


def gradients(net, x, cond):
    net.zero_grad()
    net(x, T, **cond).sample.square().mean().backward()
    return {n: p.grad.clone() for n, p in net.named_parameters()}


@both
def test_a_still_clip_is_the_image_network(image, frame_norm):
    g = rng()
    cond, x = conditions(image, 2, g), torch.randn(2, 4, 8, 8, generator=g)
    weights = {k: v.clone() for k, v in image.state_dict().items()}
    want = predict(image, x, cond)
    for eps in predict(inflate(image, frame_norm), repeat(x, "b c h w -> b c f h w", f=3), cond).unbind(2):
        assert (eps - want).abs().max() < 1e-5
    off = (predict(awake(image, frame_norm), x[:, :, None], cond)[:, :, 0] - want).abs().max()
    assert off > 1e-2  # the test can fail: a network that was tuned does
    assert all(v.equal(weights[k]) for k, v in image.state_dict().items()) and predict(image, x, cond).equal(
        want
    )


@both
def test_clips_never_mix_whatever_their_length_and_size(image, frame_norm):
    net, g = awake(image, frame_norm), rng()
    for f, h, w in [(1, 8, 8), (2, 9, 7), (5, 8, 5), (9, 8, 8)]:
        cond, x = conditions(net, 2, g), torch.randn(2, 4, f, h, w, generator=g)
        together = predict(net, x, cond)
        assert together.shape == x.shape
        for i in range(2):
            assert (
                together[i : i + 1] - predict(net, x[i : i + 1], only_clip(cond, i), T[i])
            ).abs().max() < 1e-5


def test_no_frame_feels_its_future_with_norms_per_frame(image):
    g = rng()
    cond = conditions(image, 1, g)
    x, push = torch.randn(2, 1, 4, 4, 8, 8, generator=g)
    past = {}
    for frame_norm in FRAME_NORMS:
        net, past[frame_norm] = inflate(image, frame_norm), 0
        base = predict(net, x, cond, 500)
        for k in range(4):
            other = x.clone()
            other[:, :, k] += push[:, :, k]
            change = (predict(net, other, cond, 500) - base).abs().amax((0, 1, 3, 4))
            assert (change[k:] > 1e-6).all()
            past[frame_norm] = max(past[frame_norm], change[:k].max().item() if k else 0)
    assert (
        past["per_frame"] < 1e-6 < 1e-3 < past["shared"]
    )  # shared norms carry the future back: the check can fail


@both
def test_checkpointing_gives_the_same_gradients(image, frame_norm):
    net, g = awake(image, frame_norm).train(), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    plain = gradients(net, x, cond)
    net.enable_gradient_checkpointing()
    for name, grad in gradients(net, x, cond).items():
        torch.testing.assert_close(grad, plain[name], atol=1e-6, rtol=1e-5)
    assert all(grad.abs().max() > 0 for grad in plain.values())


@both
def test_bfloat16_is_no_worse_than_the_image_network(image, frame_norm):
    half, g = small_unet_like(image).to(torch.bfloat16), rng()
    cond, x = conditions(image, 2, g), torch.randn(2, 4, 8, 8, generator=g)

    def cast(o):
        return {k: cast(v) for k, v in o.items()} if isinstance(o, dict) else o.bfloat16()

    want, error = predict(image, x, cond), lambda eps: (eps.float() - want).square().mean().sqrt().item()
    own = error(predict(half, x.bfloat16(), cast(cond)))
    clip = predict(inflate(half, frame_norm), repeat(x.bfloat16(), "b c h w -> b c f h w", f=3), cast(cond))
    assert clip.dtype == torch.bfloat16 and own > 0
    for eps in clip.unbind(2):
        assert error(eps) < 2 * own  # the yardstick is the image network's own rounding


def small_unet_like(net):
    copy = UNet2DConditionModel.from_config(net.config)
    copy.load_state_dict(net.state_dict())
    return copy.eval()


@both
def test_saved_and_loaded(image, frame_norm, tmp_path):
    net, g = awake(image, frame_norm), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    net.save_pretrained(tmp_path / "video")
    image.save_pretrained(tmp_path / "sd" / "unet")
    loaded = VideoUNet.from_pretrained(tmp_path / "video")
    fresh = load_video_unet(tmp_path / "sd", frame_norm=frame_norm)
    assert loaded.config.frame_norm == fresh.config.frame_norm == frame_norm
    assert predict(loaded, x, cond).equal(predict(net, x, cond))
    assert predict(fresh, x, cond).equal(predict(inflate(image, frame_norm), x, cond))
    half = VideoUNet.from_pretrained(tmp_path / "video", **{DTYPE_ARGUMENT: torch.bfloat16})
    assert half.dtype == torch.bfloat16


def compilable(frame_norm):
    "One level, clips of two lengths, and what the network says of them before it is compiled."
    image = small_unet(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        mid_block_type=None,
    )
    net, g = awake(image, frame_norm), rng()
    b = 1 if frame_norm == "shared" else 2  # with 2, each clip would be a graph of its own
    clips = [(conditions(net, b, g), torch.randn(b, 4, f, 8, 8, generator=g)) for f in (3, 2)]
    torch._dynamo.reset()
    return net, clips, [predict(net, x, cond, 500) for cond, x in clips]


@both
def test_compiled_whole(frame_norm):
    "The whole network is one graph (`fullgraph`), and no clip's length is baked into it."
    net, clips, want = compilable(frame_norm)
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    for (cond, x), eps in zip(clips, want):
        assert (predict(run, x, cond, 500) - eps).abs().max() < 1e-5


def test_compiled_blocks():
    "diffusers' own short cut, through to machine code: compiled blocks read each clip's length anew."
    compiler, header = (
        shutil.which("g++") or shutil.which("clang++"),
        Path(sysconfig.get_path("include")) / "Python.h",
    )
    if not compiler or not header.is_file():
        pytest.skip("torch.compile needs a C++ compiler and Python's headers, and here is none")
    net, clips, want = compilable("per_frame")
    net.compile_repeated_blocks(fullgraph=True)
    for (cond, x), eps in zip(clips, want):
        assert (predict(net, x, cond, 500) - eps).abs().max() < 1e-5


def test_a_level_that_reads_text_only_keeps_its_attention():
    "Upscalers have levels with `only_cross_attention`: nothing to replace, but a temporal layer to add."
    image = small_unet(only_cross_attention=[True, False])
    net, g = inflate(image), rng()
    cond, x = conditions(image, 2, g), torch.randn(2, 4, 8, 8, generator=g)
    blocks = [m for m in net.modules() if isinstance(m, VideoTransformerBlock)]
    assert {type(m.attn1).__name__ for m in blocks if m.only_cross_attention} == {"Attention"}
    for eps in predict(net, repeat(x, "b c h w -> b c f h w", f=3), cond).unbind(2):
        assert (eps - predict(image, x, cond)).abs().max() < 1e-5


def test_other_conditions_go_to_their_own_clip():
    "Class labels and text masks, repeated the wrong way round, would reach another clip's frames."
    image = small_unet(num_class_embeds=7)
    net, g = awake(image, "per_frame"), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    cond |= dict(
        class_labels=torch.tensor([2, 5]),
        encoder_attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]),
    )
    together = predict(net, x, cond)
    for i in range(2):
        assert (together[i : i + 1] - predict(net, x[i : i + 1], only_clip(cond, i), T[i])).abs().max() < 1e-5
    with pytest.raises(ValueError, match="1 class_labels for 2 clips"):
        predict(net, x, cond | dict(class_labels=torch.tensor([2])))


@pytest.mark.parametrize(
    "shape, said",
    [
        ((2, 4, 8, 8), "one frame with"),
        ((4, 3, 8, 8, 8, 8), "one frame with"),
        ((2, 3, 5, 8, 8), "takes 4 channels"),
        ((2, 5, 4, 8, 8), "frames stand before channels"),
        ((2, 4, 0, 8, 8), "it is empty"),
        ((0, 4, 2, 8, 8), "it is empty"),
    ],
)
def test_latents_of_another_shape(shape, said):
    net = inflate(small_unet())
    with pytest.raises(ValueError, match=said):
        predict(net, torch.zeros(shape), conditions(net, 2, rng()))


def test_conditions_of_another_model():
    net, x = inflate(small_unet("sdxl")), torch.zeros(2, 4, 2, 8, 8)
    cond = conditions(net, 2, rng())
    with pytest.raises(ValueError, match=r"this network reads \(b, n, 48\)"):
        predict(net, x, conditions(small_unet("sd1"), 2, rng()))
    with pytest.raises(ValueError, match="needs added_cond_kwargs"):
        predict(net, x, cond | dict(added_cond_kwargs=None))
    added = cond["added_cond_kwargs"]
    with pytest.raises(ValueError, match=r"got \['time_ids'\]"):
        predict(net, x, cond | dict(added_cond_kwargs=dict(time_ids=added["time_ids"])))
    with pytest.raises(ValueError, match="1 text_embeds for 2 clips"):
        predict(net, x, cond | dict(added_cond_kwargs=added | dict(text_embeds=added["text_embeds"][:1])))


# ---- one network, several callers


def asked_by_threads(net, clips, times):
    "Every answer of every thread, each of which asks of its own clip, all at once."
    answers = [[] for _ in clips]
    start = threading.Barrier(len(clips))

    def ask(number, cond, x):
        start.wait()
        for _ in range(times):
            answers[number].append(predict(net, x, cond))

    threads = [threading.Thread(target=ask, args=(number, cond, x)) for number, (cond, x) in enumerate(clips)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


@both
def test_two_threads_with_clips_of_different_length(image, frame_norm):
    "B12: 119 errors in 120 calls when the length was a number that the network kept."
    net, g = awake(image, frame_norm), rng()
    clips = [(conditions(net, 2, g), torch.randn(2, 4, f, 8, 8, generator=g)) for f in (2, 3)]
    want = [predict(net, x, cond) for cond, x in clips]
    for eps, seen in zip(want, asked_by_threads(net, clips, times=10)):
        assert len(seen) == 10
        assert max((answer - eps).abs().max() for answer in seen) < 1e-5


@both
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_checkpointing_two_lengths_before_either_goes_back(frame_norm, order):
    "Two clips go forward, then back, in either order: each layer runs again with the length of its own clip."
    net, g = awake(small_unet(), frame_norm).train(), rng()
    clips = [(conditions(net, 2, g), torch.randn(2, 4, f, 8, 8, generator=g)) for f in (2, 3)]
    plain = [gradients(net, x, cond) for cond, x in clips]
    net.enable_gradient_checkpointing()
    losses = [net(x, T, **cond).sample.square().mean() for cond, x in clips]
    for i in order:
        net.zero_grad()
        losses[i].backward()
        for name, p in net.named_parameters():
            torch.testing.assert_close(p.grad, plain[i][name], atol=1e-6, rtol=1e-5)


@both
def test_checkpointing_goes_back_in_another_thread(frame_norm):
    "As on a GPU, where autograd has threads of its own: what runs again knows its clip's length there too."
    net, g = awake(small_unet(), frame_norm).train(), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    plain = gradients(net, x, cond)
    net.enable_gradient_checkpointing()
    net.zero_grad()
    loss = net(x, T, **cond).sample.square().mean()
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], atol=1e-6, rtol=1e-5)


@both
def test_a_copy_is_another_network(frame_norm):
    net, g = awake(small_unet(), frame_norm), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    want = predict(net, x, cond)
    other = copy.deepcopy(net)
    for p in net.parameters():
        p.data.zero_()
    assert predict(other, x, cond).equal(want)


# ---- what diffusers' own code does with the network


@both
def test_processors_are_those_that_read_text(frame_norm):
    "IP-Adapter and its friends replace every listed processor; ours are not among them, and never change."
    net, g = awake(small_unet(), frame_norm), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    want = predict(net, x, cond)
    assert net.attn_processors and all(name.endswith("attn2.processor") for name in net.attn_processors)
    net.set_attn_processor(AttnProcessor())
    assert (predict(net, x, cond) - want).abs().max() < 1e-5
    net.set_attn_processor({name: AttnProcessor2_0() for name in net.attn_processors})
    assert (predict(net, x, cond) - want).abs().max() < 1e-5
    net.set_default_attn_processor()
    for size in ("auto", "max", 1):
        net.set_attention_slice(size)
        assert (predict(net, x, cond) - want).abs().max() < 1e-5
    net.set_default_attn_processor()
    net.fuse_qkv_projections()
    assert (predict(net, x, cond) - want).abs().max() < 1e-5
    net.unfuse_qkv_projections()
    net.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    net.disable_freeu()
    assert (predict(net, x, cond) - want).abs().max() < 1e-5


def test_freeu_does_to_a_still_clip_what_it_does_to_its_picture():
    image = small_unet(
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(640, 1280),  # the widths that FreeU looks for
        attention_head_dim=64,
    )
    g = rng()
    cond, x = conditions(image, 1, g), torch.randn(1, 4, 8, 8, generator=g)
    net, plain = inflate(image), predict(image, x, cond, 500)
    for unet in (image, net):
        unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    want = predict(image, x, cond, 500)
    assert (want - plain).abs().max() > 1e-3
    for eps in predict(net, repeat(x, "b c h w -> b c f h w", f=2), cond, 500).unbind(2):
        assert (eps - want).abs().max() < 1e-4


def ip_adapter(net, g, width=12, tokens=4):
    "Weights of an IP-Adapter in its own layout, for this network."
    inner = net.config.cross_attention_dim
    weights = {}
    for i, name in enumerate(net.attn_processors):
        out = net.get_submodule(name.removesuffix(".processor")).inner_dim
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"{2 * i + 1}.{part}.weight"] = torch.randn(out, inner, generator=g) * inner**-0.5
    projection = {
        "proj.weight": torch.randn(tokens * inner, width, generator=g) * width**-0.5,
        "proj.bias": torch.zeros(tokens * inner),
        "norm.weight": torch.ones(inner),
        "norm.bias": torch.zeros(inner),
    }
    return {"image_proj": projection, "ip_adapter": weights}


@both
def test_an_ip_adapter_reaches_each_clip_with_its_own_picture(frame_norm):
    "`image_embeds` is a list; as the text, it comes once per clip."
    image = small_unet()
    net, g = awake(image, frame_norm), rng()
    cond, x = conditions(net, 2, g), torch.randn(2, 4, 3, 8, 8, generator=g)
    adapter = ip_adapter(net, g)
    plain = predict(net, x, cond)
    net._load_ip_adapter_weights(
        [adapter], low_cpu_mem_usage=False
    )  # what `load_ip_adapter` does to a network
    cond |= dict(added_cond_kwargs=dict(image_embeds=[torch.randn(2, 1, 12, generator=g)]))
    together = predict(net, x, cond)
    assert (together - plain).abs().max() > 1e-3
    for i in range(2):
        alone = dict(
            encoder_hidden_states=cond["encoder_hidden_states"][i : i + 1],
            added_cond_kwargs=dict(image_embeds=[cond["added_cond_kwargs"]["image_embeds"][0][i : i + 1]]),
        )
        assert (together[i : i + 1] - predict(net, x[i : i + 1], alone, T[i])).abs().max() < 1e-5
    with pytest.raises(InputError, match="1 image_embeds for 2 clips"):
        predict(net, x, cond | dict(added_cond_kwargs=dict(image_embeds=[torch.zeros(1, 1, 12)])))


def residuals_of(image, x, cond, g):
    "What a ControlNet would add at each level, for pictures: (down, mid)."
    shapes = []
    hooks = [image.conv_in.register_forward_hook(lambda _, args, out: shapes.append(out.shape))]
    for stage in image.down_blocks:
        hooks.append(stage.register_forward_hook(lambda _, args, out: shapes.extend(o.shape for o in out[1])))
    hooks.append(image.mid_block.register_forward_hook(lambda _, args, out: shapes.append(out.shape)))
    predict(image, x, cond, 500)
    for hook in hooks:
        hook.remove()
    made = [torch.randn(shape, generator=g) * 0.1 for shape in shapes]
    return made[:-1], made[-1]


@both
def test_residuals_folded_or_as_clips(image, frame_norm):
    "A ControlNet's residuals, (b f) each: on a still clip the image network's answer to the same."
    net, g = inflate(image, frame_norm), rng()
    cond, x = conditions(image, 2, g), torch.randn(2, 4, 8, 8, generator=g)
    down, mid = residuals_of(image, x, cond, g)
    names = ("down_block_additional_residuals", "mid_block_additional_residual")
    want = predict(image, x, cond | dict(zip(names, (down, mid))), T)
    assert (want - predict(image, x, cond)).abs().max() > 1e-3
    still = repeat(x, "b c h w -> b c f h w", f=3)
    folded = (
        [repeat(r, "b c h w -> (b f) c h w", f=3) for r in down],
        repeat(mid, "b c h w -> (b f) c h w", f=3),
    )
    one_frame = tuple(r[:, :, None] for r in down), mid[:, :, None]
    as_clips = (
        [repeat(r, "b c h w -> b c f h w", f=3) for r in down],
        repeat(mid, "b c h w -> b c f h w", f=3),
    )
    for given in (folded, one_frame, as_clips):
        for eps in predict(net, still, cond | dict(zip(names, given))).unbind(2):
            assert (eps - want).abs().max() < 1e-5
    with pytest.raises(InputError, match="a residual of 2 pictures, for 2 clips of 3 frames"):
        predict(net, still, cond | dict(zip(names, (down, mid))))


def test_adapters_residuals_are_not_taken_out_of_the_callers_list():
    "diffusers takes them out of the list that it is given, which is ours."
    image = small_unet()
    net, g = inflate(image), rng()
    cond, x = conditions(image, 1, g), torch.randn(1, 4, 2, 8, 8, generator=g)
    given = [torch.randn(2, 16, 8, 8, generator=g), torch.randn(2, 32, 4, 4, generator=g)]
    adapted = predict(net, x, cond | dict(down_intrablock_additional_residuals=given), 500)
    assert len(given) == 2 and (adapted - predict(net, x, cond, 500)).abs().max() > 1e-3


def test_arguments_by_name():
    net, g = inflate(small_unet()), rng()
    cond, x = conditions(net, 1, g), torch.randn(1, 4, 2, 8, 8, generator=g)
    with torch.no_grad():
        (eps,) = net(sample=x, timestep=500, return_dict=False, **cond)
        with pytest.raises(InputError, match="no attention_mask"):
            net(x, 500, attention_mask=torch.ones(1, 64), **cond)
        with pytest.raises(InputError, match="no boxes"):
            net(x, 500, cross_attention_kwargs=dict(gligen=None), **cond)
    assert eps.equal(predict(net, x, cond, 500))


# ---- settings and surgery


@pytest.mark.parametrize(
    "missing", [(), ("keys_from",), ("frame_positions",), ("keys_from", "frame_positions")]
)
def test_old_configs_still_load(missing, tmp_path):
    net = inflate(small_unet(), keys_from=["first", "own"], frame_positions="frame_positions" not in missing)
    net.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in missing}))
    loaded = VideoUNet.from_pretrained(tmp_path)
    assert loaded.config.keys_from == ("both" if "keys_from" in missing else ["first", "own"])
    assert loaded.config.frame_positions == ("frame_positions" not in missing)
    assert loaded.config.cross_attention_dim == net.config.cross_attention_dim
    assert all(v.equal(loaded.state_dict()[k]) for k, v in net.state_dict().items())


def test_settings_go_into_the_config_and_come_out(image):
    net = inflate(image, "shared", keys_from=[0, -1])
    again = VideoUNet.from_config(net.config)
    ours = {k: v for k, v in net.config.items() if not k.startswith("_")}
    assert {k: again.config[k] for k in ours} == ours
    assert set(again.state_dict()) == set(net.state_dict())
    other, unused = VideoUNet.from_config(
        net.config, frame_norm="per_frame", return_unused_kwargs=True, fish=1
    )
    assert other.config.frame_norm == "per_frame" and unused == dict(fish=1)
    with pytest.raises(InputError, match="frame_norm is 'batch'"):
        VideoUNet(frame_norm="batch", **SHAPES["sd1"])


def test_another_type_of_block(monkeypatch):
    "The registry is open: a block of another class comes with its own surgery."

    class Block(VideoTransformerBlock.__base__):
        pass

    image = small_unet()
    for module in image.modules():
        if type(module) is Block.__base__:
            module.__class__ = Block
    with pytest.raises(InputError, match="no transformer block"):
        replace_blocks(image)
    seen = []
    monkeypatch.setitem(BLOCKS, Block, seen.append)
    replace_blocks(image)
    assert len(seen) == 4 and all(type(block) is Block for block in seen)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_generator_of_any_device(device):
    "B17: the temporal layers are drawn where the generator is, wherever the network is."
    drawn = inflate(small_unet(), generator=torch.Generator(device).manual_seed(3)).state_dict()
    again = inflate(small_unet(), generator=torch.Generator(device).manual_seed(3)).state_dict()
    name = "mid_block.attentions.0.transformer_blocks.0.attn_temp.to_q.weight"
    assert drawn[name].device.type == "cpu" and drawn[name].equal(again[name])
    assert drawn[name].abs().max() <= drawn[name].shape[1] ** -0.5
    assert not drawn[name].equal(inflate(small_unet()).state_dict()[name])


def test_the_draw_is_where_the_generator_is(monkeypatch):
    "B17 without a GPU: what is drawn is asked for on the generator's device, not on torch's default."
    image, asked, empty = small_unet(), [], torch.empty

    def recorded(*size, device=None, **how):
        asked.append(device)
        return empty(*size, device=device, **how)

    monkeypatch.setattr(torch, "empty", recorded)
    generator = torch.Generator()
    inflate(image, generator=generator)
    assert asked.count(generator.device) == 4 * 3  # queries, keys and values of four blocks
