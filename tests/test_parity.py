"Our video network against numbers computed by the authors' code, on the same small random weights."

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import load_file

from tune_a_video_nbs.authors import load_video_unet
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.tune import trainable_names

HERE = Path(__file__).parent / "parity"
FACTS = json.loads((HERE / "authors.json").read_text())
DATA = load_file(HERE / "authors.safetensors")


def part(prefix):
    return {k.removeprefix(prefix + "."): v for k, v in DATA.items() if k.startswith(prefix + ".")}


@pytest.fixture
def unet():
    torch.manual_seed(0)
    image = UNet2DConditionModel.from_config(FACTS["unet_config"])
    net = inflate(image, frame_norm="shared")
    assert sorted(set(net.state_dict()) - set(image.state_dict())) == sorted(FACTS["temporal_keys"])
    net.load_state_dict(part("unet"), strict=True)  # the authors' keys are ours
    return net


@pytest.mark.parametrize("case", ["f1", "f2", "f8", "b2f3"])
def test_forward(unet, case):
    x = part(f"forward.{case}")
    with torch.no_grad():
        out = unet(x["latents"], x["timestep"], x["encoder_hidden_states"]).sample
    assert (out - x["output"]).abs().max() <= 4 * FACTS["noise_floor"][case]


def test_per_frame_norms_are_another_network(unet):
    "The comparison can fail: with statistics per frame the output is far from the authors'."
    other = inflate(UNet2DConditionModel.from_config(FACTS["unet_config"]), frame_norm="per_frame")
    other.load_state_dict(part("unet"), strict=True)
    x = part("forward.f8")
    with torch.no_grad():
        out = other(x["latents"], x["timestep"], x["encoder_hidden_states"]).sample
    assert (out - x["output"]).abs().max() > 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step(unet, checkpointing):
    "The loss, and the norm of every gradient, with checkpointing too (the authors' down blocks get none)."
    x, names = part("train"), trainable_names(unet)
    assert sorted(names) == sorted(FACTS["grad_norms"])
    unet.requires_grad_(False).train()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    learning = {n: p.requires_grad_() for n, p in unet.named_parameters() if n in names}
    loss = torch.nn.functional.mse_loss(
        unet(x["noisy_latents"], x["timestep"], x["encoder_hidden_states"]).sample, x["target"]
    )
    loss.backward()
    assert abs(loss.item() - FACTS["loss"]) <= 1e-6 * FACTS["loss"]
    for n, p in learning.items():
        assert p.grad.norm().item() == pytest.approx(
            FACTS["grad_norms"][n], rel=4 * FACTS["grad_norm_noise"]
        ), n


def test_saved_norms_are_not_silently_another(unet, tmp_path):
    "A saved video network says which norms it has; asking for others is an error, not a silent choice."
    unet.save_pretrained(tmp_path)
    assert load_video_unet(tmp_path, frame_norm="shared").config.frame_norm == "shared"
    with pytest.raises(ValueError, match="was saved with frame_norm='shared'"):
        load_video_unet(tmp_path, frame_norm="per_frame")


def authors_ddim(frame_norm="shared"):
    "Our pipeline around the authors' weights, with the PNDM config of their checkpoint."
    net = inflate(UNet2DConditionModel.from_config(FACTS["unet_config"]), frame_norm=frame_norm)
    net.load_state_dict(part("unet"), strict=True)
    config = {
        k: v for k, v in FACTS["ddim"]["checkpoint_scheduler_config"].items() if k != "clip_sample"
    }  # older checkpoints do not say
    pipe = TuneAVideoPipeline(
        vae=AutoencoderKL(
            block_out_channels=(4,), norm_num_groups=1
        ),  # latents go in and come out: not asked
        text_encoder=None,
        tokenizer=None,
        unet=net,
        scheduler=PNDMScheduler.from_config(config),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def walked(run, **how):
    "The step and the latents after each."
    steps, seen = [], []

    def note(pipe, i, t, now):
        steps.append(int(t))
        seen.append(now["latents"])
        return {}

    run(num_inference_steps=FACTS["ddim"]["steps"], callback_on_step_end=note, **how)
    return steps, torch.stack(seen)


def ddim_inversion(pipe):
    x = part("ddim.inv")
    steps, ours = walked(pipe.invert, latents=x["x0"], prompt_embeds=x["encoder_hidden_states"])
    return steps, (ours - x["latents"][1:]).abs().flatten(1).amax(1)


def guided_sampling(pipe, **changes):
    x = part("ddim.cfg")
    empty, words = x["encoder_hidden_states_uncond_then_cond"].split(1)
    how = (
        dict(
            prompt_embeds=words, negative_prompt_embeds=empty, guidance_scale=FACTS["ddim"]["guidance_scale"]
        )
        | changes
    )
    steps, ours = walked(pipe, latents=x["init_latents"], output_type="latent", **how)
    return steps, (ours - x["latents_after_each_step"]).abs().flatten(1).amax(1)


def test_ddim_inversion_step_by_step():
    "Latents after every step, within four times the distance of the authors' own float32 from their float64."
    steps, error = ddim_inversion(authors_ddim())
    assert steps == part("ddim.inv")["timesteps_used_in_order"].tolist()
    assert (error <= 4 * FACTS["ddim"]["inv_fp32_vs_fp64"]["max_abs"]).all(), error


@pytest.mark.parametrize("at_once", [True, False])
def test_guided_sampling_step_by_step(at_once):
    steps, error = guided_sampling(authors_ddim(), batched_guidance=at_once)
    assert steps == part("ddim.cfg")["timesteps"].tolist()
    assert (error <= 4 * FACTS["ddim"]["cfg_fp32_vs_fp64"]["max_abs"]).all(), error


def test_the_comparison_of_walks_can_fail():
    "Norms per frame, a guided pair swapped, another scale: each is far off."
    floor = {k: 40 * FACTS["ddim"][f"{k}_fp32_vs_fp64"]["max_abs"] for k in ("inv", "cfg")}
    assert ddim_inversion(authors_ddim("per_frame"))[1].max() > floor["inv"]
    x = part("ddim.cfg")
    empty, words = x["encoder_hidden_states_uncond_then_cond"].split(1)
    assert (
        guided_sampling(authors_ddim(), prompt_embeds=empty, negative_prompt_embeds=words)[1].max()
        > floor["cfg"]
    )
    assert guided_sampling(authors_ddim(), guidance_scale=7.0)[1].max() > floor["cfg"]
