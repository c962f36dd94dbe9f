"What a count on `meta` says, against what an allocator sees; and what a plan makes of it."

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from base_models import BLUE, RED, make_families, random_clip, ready, rng
from diffusers import AutoencoderKL
from diffusers.utils import logging
from torch.profiler import ProfilerActivity, profile

from tune_a_video_nbs import attention as attention_module
from tune_a_video_nbs import memory as memory_module
from tune_a_video_nbs import plan as plan_module
from tune_a_video_nbs.authors import AUTHORS
from tune_a_video_nbs.bases import load_base
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.families import FAMILIES, model_configs
from tune_a_video_nbs.memory import AsOnGPU, CountBytes, forward_bytes, on_meta, step_bytes, vae_bytes
from tune_a_video_nbs.plan import OPTIONS, MemoryCount, learning_bytes, needed_bytes, plan


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    logging.set_verbosity_error()
    return make_families(tmp_path_factory.mktemp("models"))


def num_millions(network):
    return sum(p.numel() for p in network.parameters()) / 1e6


# ---- counting


def measured_bytes(run):
    "Return how far the CPU's allocator rises above where it stood, by its own record, with kernels' scratch."
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    events = prof.profiler.kineto_results.events()
    record = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([num_bytes for _, num_bytes in record]).max())


def fused_attention(q, k, v, bias=None):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_the_count_is_what_the_allocator_sees(folders, shape, monkeypatch):
    """Beyond the count is only kernels' scratch, and in tuning what learns: gradients and AdamW's averages.

    Scratch is a copy of a layer's input, weights and output at most. Attention is fused here as on a GPU.
    """
    monkeypatch.setattr(attention_module, "attend", fused_attention)
    pipe = ready(load_base(folders[shape]))
    frames, size = 6, (16, 16)
    tokens = pipe.tokenizer.model_max_length
    network = on_meta(pipe, torch.float32)["unet"]
    clip = random_clip(frames, 32)
    latents = torch.randn(1, 4, frames, *size, generator=rng())
    with torch.no_grad(), CountBytes() as count:
        pipe(RED, latents=latents, output_type="latent")
    scratch = 3 * count.largest
    pipe.tune(clip, RED, steps=1)  # the first run of anything is special
    for checkpointing in (False, True):
        if checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        counted = step_bytes(network, frames, size, gradient_checkpointing=checkpointing, tokens=tokens)
        seen = measured_bytes(lambda: pipe.tune(clip, RED, steps=2))
        assert 0.95 * counted < seen < counted + learning_bytes(network) + scratch
    for clips in (1, 2):
        counted = forward_bytes(network, frames, size, clips, tokens)
        batched = {"batched_guidance": clips == 2, "output_type": "latent"}
        seen = measured_bytes(lambda kwargs=batched: pipe(RED, latents=latents, **kwargs))
        assert 0.95 * counted < seen < counted + scratch


def test_views_make_nothing_new():
    x = torch.ones(1000)
    with CountBytes([x]) as count:
        views = [x.view(10, 100), x[:500], x[None].mT]
    assert count.peak == 0
    with CountBytes([x]) as count:
        doubled = x * 2
        half = doubled[:500]
        del doubled
        assert count.now == 4000  # a view keeps the whole storage
        del half
    assert (count.peak, count.now) == (4000, 0)
    assert len(views) == 3


def test_the_numbers_of_stable_diffusion():
    "Its own sizes, in millions, from configs alone; 74.4 learn, as in the authors' network."
    networks = on_meta("sd15")
    assert [round(num_millions(network), 1) for network in networks.values()] == [909.1, 83.7, 123.1]
    assert learning_bytes(networks["unet"]) == pytest.approx(74.4e6 * 16, rel=1e-3)
    assert num_millions(on_meta("sdxl")["text_encoder_2"]) == pytest.approx(693, abs=1)


def test_autocast_costs_norms_in_full_precision(folders):
    "Under autocast a norm keeps its input in float32 also: the count knows."
    half = on_meta(folders["sd1"])["unet"]
    whole = on_meta(folders["sd1"], torch.float32)["unet"]
    assert step_bytes(half, 4, (16, 16), torch.float16) > 1.05 * step_bytes(half, 4, (16, 16))
    assert step_bytes(half, 4, (16, 16)) < 0.6 * step_bytes(whole, 4, (16, 16))


def test_what_autocast_computes_in():
    x = torch.ones(2, 8, device="meta", dtype=torch.bfloat16)
    with AsOnGPU(torch.float16):
        assert F.linear(x, x).dtype == torch.float16
        assert F.layer_norm(x, (8,)).dtype == torch.float32
        assert (x + x).dtype == torch.bfloat16
    with AsOnGPU():
        assert F.layer_norm(x, (8,)).dtype == torch.bfloat16


def test_a_size_may_be_a_list(folders):
    "B21: what was counted is remembered, and a list was no key to remember by."
    networks = on_meta(folders["sd1"])
    for count in (step_bytes, forward_bytes):
        assert count(networks["unet"], 2, [8, 8]) == count(networks["unet"], 2, (8, 8))
    assert vae_bytes(networks["vae"], 2, [8, 8], "decode") == vae_bytes(networks["vae"], 2, (8, 8), "decode")
    assert plan(folders["sd1"], 2, [16, 32]).size == (16, 32)
    assert plan(folders["sd1"], 2, [16, 32]) == plan(folders["sd1"], 2, (16, 32))


def test_equal_networks_are_counted_once(folders, monkeypatch):
    "Another object with the same config asks nothing anew; another config does."
    built = []
    build = memory_module._build

    def spy(*args):
        built.append(args)
        return build(*args)

    monkeypatch.setattr(memory_module, "_build", spy)
    memory_module._forward_bytes.cache_clear()
    first = forward_bytes(on_meta(folders["sd1"])["unet"], 3, (8, 8))
    assert forward_bytes(on_meta(folders["sd1"])["unet"], 3, (8, 8)) == first
    assert len(built) == 1
    forward_bytes(on_meta(folders["sd2"])["unet"], 3, (8, 8))
    assert len(built) == 2


def test_counting_leaves_the_network_as_it_was(folders):
    network = on_meta(folders["sd1"])["unet"]
    for p in network.conv_in.parameters():
        p.requires_grad_(True)
    network.train()
    step_bytes(network, 2, (8, 8), gradient_checkpointing=True)
    assert network.training and not network.is_gradient_checkpointing
    assert [name for name, p in network.named_parameters() if p.requires_grad] == [
        "conv_in.weight",
        "conv_in.bias",
    ]


def test_configs_are_read_from_wherever_a_model_is(folders):
    for shape, count in (("sd1", 1), ("sdxl", 2)):
        from_folder = model_configs(folders[shape])
        from_pipe = model_configs(load_base(folders[shape]))
        assert len(from_folder[2]) == len(from_pipe[2]) == count
        assert from_folder[0]["cross_attention_dim"] == from_pipe[0]["cross_attention_dim"]
    assert model_configs("sdxl")[0] is FAMILIES["sdxl"]["unet"]


def test_the_authors_config_is_counted_as_ours(folders, tmp_path):
    folder = shutil.copytree(folders["sd1"], tmp_path / "authors")
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    for name in ("down_block_types", "up_block_types"):
        config[name] = [block.replace("2D", "3D") for block in config[name]]
    file.write_text(
        json.dumps(config | {"_class_name": AUTHORS, "mid_block_type": "UNetMidBlock3DCrossAttn"})
    )
    network = on_meta(folder)["unet"]
    assert network.config.frame_norm == "shared"
    assert num_millions(network) == num_millions(on_meta(folders["sd1"])["unet"])


# ---- planning


def needs(pipe, side, frames):
    "Return job -> GB needed with each of its sets of options, in order."
    memory = MemoryCount(pipe, (side, side), torch.float32)
    return {
        job: [needed_bytes(memory.phases(job, frames, **options)) / 1e9 for options in choices]
        for job, choices in OPTIONS.items()
    }


def plan_small(pipe, gpu_gb, frames=6, **kwargs):
    return plan(pipe, frames, 32, gpu_gb, torch.float32, **kwargs)


def test_smaller_cards_need_more_options(folders, monkeypatch):
    "What is said to fit needs no more than there is."
    monkeypatch.setattr(plan_module, "CUDA_CONTEXT_BYTES", 0)
    pipe = load_base(folders["sd1"])
    need = needs(pipe, 32, 6)
    for gbs in need.values():
        assert gbs == sorted(gbs, reverse=True)
    for i in range(4):
        made = plan_small(pipe, 1.0001 * max(gbs[i] for gbs in need.values()))
        for job, choices in OPTIONS.items():
            assert made.needed_gb[job] <= made.gpu_gb
            assert choices.index(made.options[job]) <= i
    assert made.frames_that_fit == {}


def test_what_does_not_fit(folders, monkeypatch):
    "The frames that would fit do, by their own count; and a plan that does not fit is not carried out."
    monkeypatch.setattr(plan_module, "CUDA_CONTEXT_BYTES", 0)
    pipe = load_base(folders["sd1"])
    least = needs(pipe, 32, 6)["tune"][-1]
    made = plan_small(pipe, 0.6 * least, jobs=("tune",))
    fitting = made.frames_that_fit["tune"]
    assert made.options == {"tune": None}
    assert made.needed_gb["tune"] == least
    assert 0 < fitting < 6
    assert f"does not fit, needs {least:.1f} GB; {fitting} frames would fit" in str(made)
    with pytest.raises(InputError, match=f"6 frames do not fit into .* GB; {fitting} frames would fit"):
        made.apply(pipe, "cpu")
    assert not pipe.unet.is_gradient_checkpointing
    assert plan_small(pipe, made.gpu_gb, fitting, jobs=("tune",)).options["tune"] is not None
    assert plan_small(pipe, 1e-6, jobs=("tune",)).frames_that_fit == {"tune": 0}


def test_configs_are_enough_for_a_plan(folders):
    pipe = load_base(folders["sd1"])
    assert plan_small(folders["sd1"], 1.0).needed_gb == plan_small(pipe, 1.0).needed_gb


def test_the_papers_clip_on_a_t4():
    "The figures of chapter 38: tuned with two options, drawn as it is."
    made = plan("sd15", 24, 512, 15)
    assert made.options["tune"] == {"vae_slicing": True, "gradient_checkpointing": True}
    assert made.options["sample"] == {}
    assert made.needed_gb == {"tune": pytest.approx(11.2, abs=0.05), "sample": pytest.approx(6.5, abs=0.05)}
    assert made.phases["tune"]["tune"]["activations"] / 1e9 == pytest.approx(6.48, abs=0.005)
    assert "tune: fits with vae_slicing=True, gradient_checkpointing=True, needs 11.2 GB" in str(made)
    assert "sample: fits as it is, needs 6.5 GB" in str(made)
    assert made.call_kwargs == {"batched_guidance": True}


def test_a_plan_is_carried_out(folders, monkeypatch):
    monkeypatch.setattr(plan_module, "CUDA_CONTEXT_BYTES", 0)
    pipe = ready(load_base(folders["sd1"]))
    gb = 1.0001 * max(gbs[2] for gbs in needs(pipe, 16, 2).values())
    made = plan(pipe, 2, 16, gb, torch.float32)
    made.apply(pipe, "cpu")
    assert pipe.unet.is_gradient_checkpointing == bool(made.options["tune"].get("gradient_checkpointing"))
    assert pipe.vae.use_slicing
    assert len(pipe.tune(random_clip(), RED)) == 2
    edited = pipe(BLUE, latents=pipe.invert(random_clip()), **made.call_kwargs)
    assert edited.frames.shape == (1, 2, 16, 16, 3)


def test_guidance_in_turn_is_passed_to_the_call(folders, monkeypatch):
    monkeypatch.setattr(plan_module, "CUDA_CONTEXT_BYTES", 0)
    pipe = load_base(folders["sd1"])
    memory = MemoryCount(pipe, (32, 32), torch.float32)
    slicing = needed_bytes(memory.phases("sample", 6, vae_slicing=True))
    in_turn = needed_bytes(memory.phases("sample", 6, vae_slicing=True, batched_guidance=False))
    assert in_turn < slicing
    made = plan_small(pipe, 1.0001e-9 * in_turn, jobs=("sample",))
    assert made.call_kwargs == {"batched_guidance": False}
    assert plan_small(pipe, 1e-6, jobs=("tune",)).call_kwargs == {"batched_guidance": True}


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"frames": 0}, "must be positive"),
        ({"gpu_gb": -1.0}, "must be positive"),
        ({"size": (30, 33)}, "multiples of 2"),
    ],
)
def test_plans_that_make_no_sense(folders, wrong, message):
    with pytest.raises(InputError, match=message):
        plan(folders["sd1"], **({"frames": 2, "size": 16} | wrong))


def test_the_vae_is_counted_by_its_job(folders):
    vae = AutoencoderKL.from_pretrained(folders["sd1"], subfolder="vae")
    assert vae_bytes(vae, 4, (8, 8), "encode") != vae_bytes(vae, 4, (8, 8), "decode")
    assert vae_bytes(vae, 4, (8, 8), "encode") > 3 * vae_bytes(vae, 1, (8, 8), "encode")
