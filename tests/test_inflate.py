"What chapter 12 claims of its one network, for all three families of Stable Diffusion; compiling; and folders of other makes."

import json
import pickle
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet3DConditionModel
from einops import repeat
from safetensors.torch import load_file, save_file
from small_nets import SHAPES, conditions, only_clip, randomise, small_unet

from tune_a_video_nbs.inflate import FRAME_NORMS, VideoTransformerBlock, VideoUNet, inflate

HERE = Path(__file__).parent / "parity"
T = torch.tensor([10, 700])
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
    loaded, fresh = (
        VideoUNet.from_pretrained(tmp_path / "video"),
        VideoUNet.from_pretrained(tmp_path / "sd", subfolder="unet", frame_norm=frame_norm),
    )
    assert loaded.config.frame_norm == fresh.config.frame_norm == frame_norm
    assert predict(loaded, x, cond).equal(predict(net, x, cond))
    assert predict(fresh, x, cond).equal(predict(inflate(image, frame_norm), x, cond))
    assert VideoUNet.from_pretrained(tmp_path / "video", torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def compilable(frame_norm):
    "One level, clips of two lengths, and what the network says of them before it is compiled."
    image = small_unet(
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(16,),
        mid_block_type=None,
    )
    net, g = awake(image, frame_norm), rng()
    clips = [(conditions(net, 2, g), torch.randn(2, 4, f, 8, 8, generator=g)) for f in (3, 2)]
    torch._dynamo.reset()
    return net, clips, [predict(net, x, cond) for cond, x in clips]


@both
def test_compiled_whole(frame_norm):
    "The whole network is one graph (`fullgraph`), and no clip's length is baked into it. Needs no C++ compiler."
    net, clips, want = compilable(frame_norm)
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    for (cond, x), eps in zip(clips, want):
        assert (predict(run, x, cond) - eps).abs().max() < 1e-5


def test_compiled_blocks():
    "diffusers' own short cut, through to machine code: the blocks are compiled, and read each clip's length anew."
    compiler, header = (
        shutil.which("g++") or shutil.which("clang++"),
        Path(sysconfig.get_path("include")) / "Python.h",
    )
    if not compiler or not header.is_file():
        pytest.skip("torch.compile needs a C++ compiler and Python's headers, and here is none")
    net, clips, want = compilable("per_frame")
    net.compile_repeated_blocks(fullgraph=True)
    for (cond, x), eps in zip(clips, want):
        assert (predict(net, x, cond) - eps).abs().max() < 1e-5


def test_a_level_that_reads_text_only_keeps_its_attention():
    "Upscalers have levels with `only_cross_attention`: no self-attention, so nothing to replace; the temporal layer still comes."
    image = small_unet(only_cross_attention=[True, False])
    net, g = inflate(image), rng()
    cond, x = conditions(image, 2, g), torch.randn(2, 4, 8, 8, generator=g)
    blocks = [m for m in net.modules() if isinstance(m, VideoTransformerBlock)]
    assert {type(m.attn1).__name__ for m in blocks if m.only_cross_attention} == {"Attention"}
    for eps in predict(net, repeat(x, "b c h w -> b c f h w", f=3), cond).unbind(2):
        assert (eps - predict(image, x, cond)).abs().max() < 1e-5


def test_other_conditions_go_to_their_own_clip():
    "Class labels and text masks are given per clip; repeated the wrong way round they would reach another clip's frames."
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


# ---- the authors' folders

THEIRS = dict(  # as their code writes it; what their oldest folders leave out is `LEFT_OUT`
    _class_name="UNet3DConditionModel",
    _diffusers_version="0.11.1",
    _name_or_path="./checkpoints/small",
    act_fn="silu",
    attention_head_dim=8,
    block_out_channels=[32, 64],
    center_input_sample=False,
    class_embed_type=None,
    cross_attention_dim=32,
    down_block_types=["CrossAttnDownBlock3D", "DownBlock3D"],
    downsample_padding=1,
    dual_cross_attention=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    in_channels=4,
    layers_per_block=1,
    mid_block_scale_factor=1,
    mid_block_type="UNetMidBlock3DCrossAttn",
    norm_eps=1e-5,
    norm_num_groups=8,
    num_class_embeds=None,
    only_cross_attention=False,
    out_channels=4,
    resnet_time_scale_shift="default",
    sample_size=16,
    up_block_types=["UpBlock3D", "CrossAttnUpBlock3D"],
    upcast_attention=False,
    use_linear_projection=False,
)
LEFT_OUT = (
    "mid_block_type",
    "class_embed_type",
    "dual_cross_attention",
    "num_class_embeds",
    "only_cross_attention",
    "resnet_time_scale_shift",
    "upcast_attention",
    "use_linear_projection",
)


@pytest.fixture
def authors():
    "Their network's weights under their names, and what it computed."
    facts, data = json.loads((HERE / "authors.json").read_text()), load_file(HERE / "authors.safetensors")

    def part(prefix):
        return {
            k.removeprefix(prefix + "."): v.contiguous()
            for k, v in data.items()
            if k.startswith(prefix + ".")
        }

    return part("unet"), part("forward.b2f3"), facts["noise_floor"]["b2f3"]


def write(folder, config, weights, kind):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("left_out", [(), LEFT_OUT], ids=["full", "sparse"])
def test_the_authors_folder(authors, kind, left_out, tmp_path):
    weights, case, floor = authors
    write(tmp_path / "unet", {k: v for k, v in THEIRS.items() if k not in left_out}, weights, kind)
    net = VideoUNet.from_pretrained(tmp_path, subfolder="unet")
    assert net.config.frame_norm == "shared" and net.config.mid_block_type == "UNetMidBlock2DCrossAttn"

    def off(net):
        return (
            (
                predict(
                    net,
                    case["latents"],
                    dict(encoder_hidden_states=case["encoder_hidden_states"]),
                    case["timestep"],
                )
                - case["output"]
            )
            .abs()
            .max()
        )

    assert off(net) <= 4 * floor
    assert (
        off(VideoUNet.from_pretrained(tmp_path, subfolder="unet", frame_norm="per_frame")) > 1e-2
    )  # asked for, and another network
    net.save_pretrained(tmp_path / "ours")  # from here on a folder of ours
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["_class_name"] == "VideoUNet"
    assert off(VideoUNet.from_pretrained(tmp_path / "ours")) <= 4 * floor


def test_an_incomplete_or_foreign_folder_is_refused(authors, tmp_path):
    weights, _, _ = authors
    write(
        tmp_path / "part", THEIRS, {k: v for k, v in weights.items() if "mid_block" not in k}, "safetensors"
    )
    with pytest.raises(ValueError, match="missing_keys, such as mid_block"):
        VideoUNet.from_pretrained(tmp_path / "part")
    write(tmp_path / "more", THEIRS, weights | {"transformer_in.weight": torch.zeros(1)}, "safetensors")
    with pytest.raises(ValueError, match="1 unexpected_keys, such as transformer_in"):
        VideoUNet.from_pretrained(tmp_path / "more")
    theirs = UNet3DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        layers_per_block=1,
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    theirs.save_pretrained(tmp_path / "diffusers")  # another network under the very same class name
    with pytest.raises(ValueError, match="diffusers has another of that name"):
        VideoUNet.from_pretrained(tmp_path / "diffusers")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="but AutoencoderKL"):
        VideoUNet.from_pretrained(tmp_path / "vae")


@pytest.mark.parametrize("of", ["ours", "image", "authors"])
def test_half_filled_networks_are_refused(of, authors, tmp_path):
    net = small_unet() if of == "image" else inflate(small_unet())
    net.save_pretrained(tmp_path)
    if of == "authors":
        (tmp_path / "config.json").write_text(json.dumps(THEIRS))
        weights = authors[0]
    else:
        weights = net.state_dict()
    save_file(
        {k: v for k, v in weights.items() if k != "conv_in.bias"},
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(ValueError, match="1 missing_keys, such as conv_in.bias"):
        VideoUNet.from_pretrained(tmp_path)


class Bomb:
    "What a pickle can hold: a call, made by whoever reads it."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("of", ["authors", "image"])
def test_code_in_a_pickle_is_never_run(authors, of, tmp_path):
    config = THEIRS if of == "authors" else dict(small_unet().config, _class_name="UNet2DConditionModel")
    mark = tmp_path / "was-here"
    write(tmp_path / "unet", config, authors[0] | {"bomb": Bomb(mark)}, "bin")
    with pytest.raises(ValueError, match="nothing in them was run"):
        VideoUNet.from_pretrained(tmp_path / "unet")
    assert not mark.exists()
    with open(tmp_path / "bomb.pkl", "wb") as f:
        pickle.dump(Bomb(mark), f)
    pickle.loads((tmp_path / "bomb.pkl").read_bytes())
    assert mark.exists()  # the bomb is a live one


def test_truncated_weights(authors, tmp_path):
    weights, _, _ = authors
    for kind in ("bin", "safetensors"):
        write(tmp_path / kind, THEIRS, weights, kind)
        path = tmp_path / kind / f"diffusion_pytorch_model.{kind}"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises((OSError, ValueError), match=kind):
            VideoUNet.from_pretrained(tmp_path / kind)
