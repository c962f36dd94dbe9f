"The attention of chapter 11, alone and inside an inflated network, which comes after that chapter."

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from safetensors.torch import load_file

from tune_a_video_nbs.attention import (
    FRAME_CHOICES,
    SparseCausalAttention,
    TemporalAttention,
    add_frame_positions,
    attend,
    attended_frames,
    attention_map,
    first_and_previous,
    frame_code,
    parse_frames,
    set_frames,
    split_heads,
)
from tune_a_video_nbs.ddpm import alphas_cumprod, linear_schedule
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.tune import trainable_names, tune
from tune_a_video_nbs.tuned import load_tuned, save_tuned

SMALL = dict(
    sample_size=8,
    block_out_channels=(32, 64),
    layers_per_block=1,
    norm_num_groups=8,
    cross_attention_dim=32,
    attention_head_dim=4,
    down_block_types=("CrossAttnDownBlock2D",) * 2,
    up_block_types=("CrossAttnUpBlock2D",) * 2,
)
F = 5


@pytest.fixture(scope="module")
def image_unet():
    net, g = UNet2DConditionModel(**SMALL), torch.Generator().manual_seed(0)
    for name, p in net.named_parameters():
        scale = 0.1 if p.ndim == 1 else p[0].numel() ** -0.5
        p.data.copy_(scale * torch.randn(p.shape, generator=g) + ("norm" in name and name.endswith("weight")))
    return net.eval().requires_grad_(False)


@pytest.fixture
def unet(image_unet):
    return inflate(image_unet, frame_norm="per_frame").eval().requires_grad_(False)


def clip(seed=1):
    return torch.randn(1, 4, F, 8, 8, generator=torch.Generator().manual_seed(seed))


TEXT = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def predict(net, x):
    return net(x, 500, TEXT).sample


def awaken(net):
    "As if tuned: the temporal layers speak."
    g = torch.Generator().manual_seed(3)
    for m in net.modules():
        if isinstance(m, TemporalAttention):
            m.to_out[0].weight.data.normal_(0, 0.1, generator=g)
    return net


def test_a_later_processor_does_not_undo_the_attention(unet):
    x, before = clip(), predict(awaken(unet), clip())
    unet.set_attn_processor(AttnProcessor())
    assert torch.allclose(predict(unet, x), before, atol=1e-5)
    unet.set_default_attn_processor()
    assert torch.allclose(predict(unet, x), before, atol=1e-5)
    # what such a call does to an attention written as a processor: plain self-attention, another answer
    assert (predict(set_frames(unet, "own"), x) - before).abs().max() > 1e-2


def test_keys_and_values_are_projected_once_per_frame(unet):
    tokens, hooks = [], []
    for m in unet.modules():
        if isinstance(m, SparseCausalAttention):
            hooks += [
                to.register_forward_hook(
                    lambda _, args, out: tokens.append((args[0].shape[:2].numel(), out.shape[:2].numel()))
                )
                for to in (m.to_k, m.to_v)
            ]
    for which in ("both", "first", "all", [0, -1, -2]):
        tokens.clear()
        predict(set_frames(unet, which), clip())
        assert len(tokens) == len(hooks) > 0 and all(
            t in ((F * 64,) * 2, (F * 16,) * 2) for t in tokens
        )  # 8x8 and 4x4 places


@pytest.mark.parametrize("which", ["own", "first", "previous", "both", "all", [0, -2], ["next"]], ids=str)
def test_the_choice_of_frames_reaches_the_whole_network(unet, which):
    "Disturb one frame: after many layers exactly those change that hear of it, at first or second hand."
    set_frames(unet, which)
    assert unet.config.keys_from == which
    hears = torch.eye(F) + torch.tensor(
        [[float(j in row) for j in range(F)] for row in attended_frames(which, F)]
    )
    hears = torch.linalg.matrix_power(hears, F) > 0
    x = clip()
    base = predict(unet, x)
    for k in range(F):
        other = x.clone()
        other[:, :, k] += clip(5)[:, :, k]
        changed = (predict(unet, other) - base).abs().amax((0, 1, 3, 4))
        assert ((changed > 1e-6) == hears[:, k]).all()


def test_own_frames_are_the_image_network(image_unet, unet):
    x = clip()
    video = predict(set_frames(unet, "own"), x)
    for i in range(F):
        assert torch.allclose(video[:, :, i], predict(image_unet, x[:, :, i]), atol=1e-5)


def test_positions_leave_the_authors_weights_exact():
    here = Path(__file__).parent / "parity"
    facts, data = json.loads((here / "authors.json").read_text()), load_file(here / "authors.safetensors")

    def part(prefix):
        return {k.removeprefix(prefix + "."): v for k, v in data.items() if k.startswith(prefix + ".")}

    net = inflate(UNet2DConditionModel.from_config(facts["unet_config"]), frame_norm="shared")
    net.load_state_dict(part("unet"), strict=True)
    x = part("forward.f8")

    def run():
        return net(x["latents"], x["timestep"], x["encoder_hidden_states"]).sample

    with torch.no_grad():
        before, after = run(), (add_frame_positions(net), run())[1]
    assert after.equal(before) and (after - x["output"]).abs().max() <= 4 * facts["noise_floor"]["f8"]


class Scheduler:
    alphas_cumprod = alphas_cumprod(linear_schedule())

    class config:
        prediction_type = "epsilon"


def test_positions_learn_are_saved_and_break_the_blindness(image_unet, unet, tmp_path):
    x, backwards = clip(), torch.arange(F).flip(0)
    set_frames(unet, "all")  # the one choice under which only positions can tell the order
    blind = awaken(unet)
    assert torch.allclose(predict(blind, x[:, :, backwards]), predict(blind, x)[:, :, backwards], atol=1e-4)
    plain = trainable_names(unet)
    positions = [n for n in trainable_names(add_frame_positions(unet)) if n not in plain]
    layers = sum(isinstance(m, TemporalAttention) for m in unet.modules())
    assert len(positions) == layers and all(n.endswith("attn_temp.frame_positions.weight") for n in positions)
    tune(unet, x, TEXT, Scheduler, steps=2, lr=1e-2, generator=torch.Generator().manual_seed(0))
    assert all(unet.get_parameter(n).abs().max() > 0 for n in positions)
    assert (predict(unet, x[:, :, backwards]) - predict(unet, x)[:, :, backwards]).abs().max() > 1e-3

    save_tuned(unet, tmp_path / "tuned.safetensors")
    with pytest.raises(ValueError):
        load_tuned(inflate(image_unet, frame_norm="per_frame"), tmp_path / "tuned.safetensors")
    other = add_frame_positions(set_frames(inflate(image_unet, frame_norm="per_frame"), "all")).eval()
    load_tuned(other, tmp_path / "tuned.safetensors")
    assert predict(other, x).equal(predict(unet.eval(), x))


def test_gradient_checkpointing_with_another_choice_and_positions(unet):
    add_frame_positions(set_frames(awaken(unet), [0, -1, -2])).requires_grad_(True).train()

    def gradients():
        unet.zero_grad()
        unet(clip(), 500, TEXT).sample.square().mean().backward()
        return {n: p.grad.clone() for n, p in unet.named_parameters()}

    plain = gradients()
    unet.enable_gradient_checkpointing()
    saved = gradients()
    for n, grad in plain.items():
        assert torch.allclose(saved[n], grad, atol=1e-6), n
    assert all(plain[n].abs().max() > 0 for n in plain if "frame_positions" in n)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(dtype):
    for grad in (False, True):
        layer = (
            SparseCausalAttention(query_dim=16, heads=2, dim_head=8, keys_from=[0, -1, -2])
            .to(dtype)
            .requires_grad_(grad)
        )
        assert layer(torch.randn(6, 4, 16, dtype=dtype), num_frames=6).dtype == dtype
        layer = add_frame_positions(
            TemporalAttention(query_dim=16, heads=2, dim_head=8).to(dtype)
        ).requires_grad_(grad)
        assert (
            layer.frame_positions.weight.dtype == dtype
            and layer(torch.randn(6, 4, 16, dtype=dtype), num_frames=6).dtype == dtype
        )


@pytest.mark.parametrize(
    "which", ["last", "", [], (), ["first", "last"], [0.5], [True], [[0]], 1, None, {"first"}]
)
def test_frames_that_nobody_knows(which):
    for refused in (
        lambda: parse_frames(which, 4),
        lambda: SparseCausalAttention(query_dim=8, keys_from=which),
    ):
        with pytest.raises(InputError, match="keys come from .*; use one of"):
            refused()


def test_rules_as_numbers():
    assert parse_frames("both", 3) == ["first", "previous"]
    assert parse_frames("all", 3) == parse_frames(range(3), 3) == [0, 1, 2]
    for f in (1, 2, 5):
        assert attended_frames("both", f) == first_and_previous(f).tolist()
        assert attended_frames("next", f) == [[min(i + 1, f - 1)] for i in range(f)]
        assert attended_frames([-2, 0, "own"], f) == [[max(i - 2, 0), 0, i] for i in range(f)]
    with pytest.raises(InputError, match="keys come from frame 4, but this clip's last frame is 3"):
        attended_frames([0, 4], 4)


@pytest.mark.parametrize("which", [*FRAME_CHOICES, [0, -1, "own"], [0, -1, -2], [5, 2], ["next", 0]], ids=str)
def test_fetching_is_attention_under_a_mask(which):
    g = torch.Generator().manual_seed(0)
    layer = SparseCausalAttention(query_dim=16, heads=2, dim_head=8, keys_from=which)
    x = torch.randn(7, 3, 16, generator=g)
    sees = torch.tensor([[j in row for j in range(7)] for row in attended_frames(which, 7)])
    bias = torch.zeros(21, 21).masked_fill(~sees.repeat_interleave(3, 0).repeat_interleave(3, 1), -torch.inf)
    q, k, v = (split_heads(to(x.reshape(1, 21, 16)), 2) for to in (layer.to_q, layer.to_k, layer.to_v))
    want = layer.to_out[0](attend(q, k, v, bias).transpose(1, 2).reshape(7, 3, 16))
    assert (layer(x, num_frames=7) - want).abs().max() < 1e-5
    for place in (0, 2):
        seen = attention_map(layer, x, 4, place, num_frames=7)
        assert seen.shape == (2, 7, 3) and torch.allclose(seen.sum((1, 2)), torch.ones(2))
        assert ((seen > 0).all(2) == sees[4]).all()


def test_a_layer_alone_serves_two_threads():
    "The number of frames is an argument of each call: the layer keeps none."
    for kind in (SparseCausalAttention, TemporalAttention):
        layer = kind(query_dim=16, heads=2, dim_head=8).requires_grad_(False)
        x = torch.randn(12, 4, 16, generator=torch.Generator().manual_seed(0))
        want = {f: layer(x, num_frames=f) for f in (2, 3, 4)}
        for f in (2, 4, 3, 2):
            assert layer(x, num_frames=f).equal(want[f])
        with pytest.raises(TypeError, match="num_frames"):
            layer(x)


def test_state_dict_keys_are_the_authors():
    shape = dict(query_dim=16, heads=2, dim_head=8)
    image = set(Attention(**shape).state_dict())
    assert (
        set(SparseCausalAttention(**shape).state_dict())
        == set(TemporalAttention(**shape).state_dict())
        == image
    )
    assert set(add_frame_positions(TemporalAttention(**shape)).state_dict()) - image == {
        "frame_positions.weight"
    }


@pytest.mark.parametrize("which", ["both", [0, -1, -2], "all"], ids=str)
def test_compiles_whole(which):
    "No graph break: a break would cost the speed that compiling is for."
    layer = SparseCausalAttention(query_dim=16, heads=2, dim_head=8, keys_from=which).requires_grad_(False)
    temporal = add_frame_positions(TemporalAttention(query_dim=16, heads=2, dim_head=8)).requires_grad_(False)
    x = torch.randn(6, 4, 16)
    for one in (layer, temporal):
        compiled = torch.compile(one, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(x, num_frames=6), one(x, num_frames=6), atol=1e-6)


# ---- positions that start random


def test_random_positions_leave_step_0_exact(unet):
    x = clip()
    before = predict(unet, x)
    add_frame_positions(unet, init="random")
    positions = [p for n, p in unet.named_parameters() if "frame_positions" in n]
    assert positions and all(p.std() > 0.1 for p in positions)
    assert predict(unet, x).equal(before)


def test_random_positions_are_reproducible_and_of_unit_size():
    def layer(**kwargs):
        return add_frame_positions(TemporalAttention(query_dim=256, heads=2, dim_head=8), **kwargs)

    first, again = layer(init="random"), layer(init="random")
    other = layer(init="random", generator=torch.Generator().manual_seed(1))
    assert first.frame_positions.weight.equal(again.frame_positions.weight)
    assert not first.frame_positions.weight.equal(other.frame_positions.weight)
    told = first.frame_positions(frame_code(8))
    assert 0.8 < told.std() < 1.25


def first_gradients(init, steps=0, order=(0.0, 1.0, 2.0, 3.0)):
    "Gradients of a temporal layer that is to make equal frames as bright as their number in `order`."
    torch.manual_seed(0)
    layer = add_frame_positions(TemporalAttention(query_dim=16, heads=2, dim_head=8), init)
    layer.requires_grad_(True)
    wanted = torch.tensor(order)[:, None, None]
    for _ in range(steps + 1):
        layer.zero_grad()
        (layer(torch.ones(4, 4, 16), num_frames=4) - wanted).square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in layer.named_parameters()}
        for p in layer.parameters():
            p.data -= 0.1 * p.grad
    return gradients


@pytest.mark.parametrize("init", ["zero", "random"])
def test_behind_a_silent_output_only_the_output_has_a_first_gradient(init):
    "What does not change the output has no gradient: that is what silent means."
    loud = [n for n, grad in first_gradients(init).items() if grad.any()]
    assert loud and all(n.startswith("to_out") for n in loud)
    assert first_gradients(init, steps=1)["frame_positions.weight"].any()  # one step later it speaks


def test_random_positions_tell_the_output_of_the_order_at_once():
    "With zero positions equal frames say the same, in whatever order the errors come."
    rising, falling = (0.0, 1.0, 2.0, 3.0), (3.0, 2.0, 1.0, 0.0)

    def gradient(init, order):
        return first_gradients(init, order=order)["to_out.0.weight"]

    torch.testing.assert_close(gradient("zero", rising), gradient("zero", falling))
    assert (gradient("random", rising) - gradient("random", falling)).abs().max() > 1e-3


def test_random_positions_need_silent_layers(unet):
    with pytest.raises(InputError, match="init is 'ones'"):
        add_frame_positions(unet, init="ones")
    awaken(unet)
    before = dict(unet.config)
    with pytest.raises(InputError, match="only init='zero'"):
        add_frame_positions(unet, init="random")
    assert dict(unet.config) == before
    add_frame_positions(unet)
