"""The pipeline on whole small models of each family, with random weights:

Equal to diffusers' own, offloaded, interrupted, and fed what is broken.
"""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, EulerDiscreteScheduler, PNDMScheduler
from diffusers.utils import logging
from small_nets import STABLE, randomise, small_pipeline, small_unet

from tune_a_video_nbs.edit import OUTPUTS, decode_clip, encode_clip
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.ldm import as_ddim
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.prompts import tokenize
from tune_a_video_nbs.tune import trainable_names
from tune_a_video_nbs.tuned import save_tuned

RED, BLUE = "a red star is bouncing on the grass", "a blue heart is bouncing in the snow"
V = PNDMScheduler(**STABLE, skip_prk_steps=True, prediction_type="v_prediction")
logging.set_verbosity_error()


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(f=3, h=16, w=16):
    return torch.randint(256, (f, h, w, 3), generator=rng(), dtype=torch.uint8).numpy()


def load(folder, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PNDMScheduler is replaced")
        pipe = TuneAVideoPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    pipe.update_settings(num_inference_steps=3, guidance_scale=3.0, tune_steps=2)
    return pipe


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {
        "sd1": small_pipeline(made / "sd1"),
        "v": small_pipeline(made / "v", "sd2", V),
        "sdxl": small_pipeline(made / "sdxl", "sdxl"),
    }


@pytest.fixture(params=["sd1", "v", "sdxl"])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def pipe(folders):
    return load(folders["sd1"])


@pytest.mark.parametrize("family", ["sd1", "v"])
def test_level_weights_reach_tuning(folders, family):
    "A kind of weights is one argument away, and the authors' is the default."
    losses = {}
    for name, settings in {
        "default": dict(),
        "uniform": dict(levels="uniform"),
        "clean": dict(levels="clean_data"),
        "capped": dict(levels="clean_data", cap=1.0),
    }.items():
        losses[name] = load(folders[family]).tune(clip(), RED, steps=2, lr=1e-3, **settings)
    assert losses["default"] == losses["uniform"]
    assert losses["clean"] != losses["default"] and losses["capped"] != losses["clean"]
    with pytest.raises(ValueError, match="use one of uniform, min_snr, clean_data"):
        load(folders[family]).tune(clip(), RED, levels="snr")


def test_pndm_is_replaced_without_a_word(folders, recwarn):
    "It came with the model and nobody chose it; the warning stood at every load of Stable Diffusion 1.5."
    pipe = TuneAVideoPipeline.from_pretrained(folders["v"])
    assert not [w for w in recwarn if "replaced" in str(w.message)]
    c = pipe.scheduler.config
    assert type(pipe.scheduler) is DDIMScheduler and (
        c.prediction_type,
        c.clip_sample,
        c.steps_offset,
        c.set_alpha_to_one,
    ) == ("v_prediction", False, 1, False)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=True),
        DDIMScheduler(clip_sample=False, timestep_spacing="linspace"),
        EulerDiscreteScheduler(**STABLE, timestep_spacing="linspace"),
    ],
    ids=["clips", "linspace", "euler"],
)
def test_a_sampler_that_cannot_be_run_backwards_is_changed(scheduler):
    with pytest.warns(UserWarning, match="is replaced by DDIM"):
        ddim = as_ddim(scheduler)
    assert not ddim.config.clip_sample and ddim.config.timestep_spacing == "leading" and as_ddim(ddim) is ddim


def test_before_tuning_one_frame_is_what_diffusers_draws(folder):
    """Same latents, words, words to leave:

    SD 1, a network that says v, and SDXL with its two encoders, summary and sizes.
    """
    theirs, ours = DiffusionPipeline.from_pretrained(folder), load(folder)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = as_ddim(ours.scheduler)
    z = torch.randn(2, 4, 8, 8, generator=rng())
    how = dict(prompt=[RED, BLUE], num_inference_steps=4, guidance_scale=3.0)
    for leave in ("a pink ring on the sea", ""):
        size = dict(height=16, width=16)
        said = dict(
            negative_prompt=[leave] * 2 if leave else None
        )  # SDXL zeroes what is not said, as we do for ""
        want = theirs(latents=z.clone(), output_type="latent", **how, **said, **size).images
        got = ours(latents=z[:, :, None], negative_prompt=leave, output_type="latent", **how).frames[:, :, 0]
        assert (got - want).abs().max() < 1e-4 * want.abs().max()
    assert (
        got
        - ours(latents=z[:, :, None], output_type="latent", **how | dict(prompt=[BLUE, BLUE])).frames[:, :, 0]
    ).abs().max() > 1e-3


def test_tune_invert_draw(folder):
    """The whole method.

    A loss that is the network's own, an inversion that follows the prediction type, and a way back.
    """
    pipe = load(folder)
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    losses = pipe.tune(clip(), RED, steps=3, lr=1e-3)
    changed = {k for k, v in pipe.unet.state_dict().items() if not v.equal(before[k])}
    assert (
        len(losses) == 3
        and np.isfinite(losses).all()
        and changed
        and changed <= set(trainable_names(pipe.unet))
    )
    x = encode_clip(pipe, clip())

    def trip(n):
        return pipe(
            RED,
            latents=pipe.invert(clip(), RED, num_inference_steps=n),
            guidance_scale=1,
            num_inference_steps=n,
            output_type="latent",
        ).frames

    errors = [(trip(n) - x).square().mean().sqrt().item() for n in (4, 64)]
    assert errors[1] < errors[0]  # shorter strides, nearer home
    assert pipe(BLUE, latents=pipe.invert(clip())).frames.shape == (1, 3, 16, 16, 3)


def test_v_is_not_taken_for_noise(folders):
    "The authors' inversion is wrong here, and nothing would fail: the answer is read as the scheduler says."
    pipe = load(folders["v"])
    right = pipe.invert(clip(), RED)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon")
    assert (pipe.invert(clip(), RED) - right).abs().max() > 0.1 * right.std()


def test_saved_and_loaded(folder, tmp_path):
    pipe = load(folder)
    randomise(pipe.unet, only="attn_temp.")
    pipe.caption = RED
    pipe.save_pretrained(tmp_path / "whole")
    again = load(tmp_path / "whole")

    def draw(p):
        return p(BLUE, num_frames=2, generator=rng()).frames

    assert (draw(again) == draw(pipe)).all() and again.caption == RED and "caption" not in again.settings
    pipe.save_tuned(tmp_path / "t.safetensors")
    fresh = load(folder)
    fresh.load_tuned(tmp_path / "t.safetensors")
    assert (draw(fresh) == draw(pipe)).all() and fresh.caption == RED
    assert set(pipe.components) == set(again.components)
    shared = TuneAVideoPipeline(**pipe.components)
    shared.set_progress_bar_config(disable=True)
    shared.update_settings(**pipe.settings)
    assert shared.unet is pipe.unet and (draw(shared) == draw(pipe)).all()


def test_choices_when_loading(folders):
    assert load(folders["sd1"], frame_norm="shared").unet.config.frame_norm == "shared"
    assert load(folders["sd1"], frame_positions=True).unet.config.frame_positions
    net = inflate(small_unet(cross_attention_dim=96))
    assert load(folders["sd1"], unet=net).unet is net


def test_half_precision(folder):
    "bfloat16: the latents themselves stay in float32, so the way back stays a way back."
    half, full = load(folder, torch_dtype=torch.bfloat16), load(folder)
    z = half.invert(clip(), RED)
    assert (
        half.unet.dtype == torch.bfloat16
        and z.dtype == torch.float32
        and np.isfinite(half.tune(clip(), RED)).all()
    )

    def draw(p):
        return p(BLUE, num_frames=2, generator=rng(), output_type="latent").frames

    half = load(folder, torch_dtype=torch.bfloat16)
    want = draw(full)
    error = (draw(half) - want).square().mean().sqrt() / want.square().mean().sqrt()
    assert (
        0 < error < 0.1
    )  # three steps, each a pair weighed 3 to 2, each rounded to one part in 256: at most .06


def test_model_offload(folder):
    "There is no accelerator here, so the CPU is its own: the hooks are the same."
    plain, moved = load(folder), load(folder)
    moved.enable_model_cpu_offload(device="cpu")

    def run(p):
        return p(BLUE, latents=p.invert(clip(), RED)).frames

    for _ in range(2):
        assert np.abs(run(moved) - run(plain)).max() < 1e-5  # memory elsewhere, sums in another order
    assert moved.tune(clip(), RED) == pytest.approx(
        plain.tune(clip(), RED), rel=1e-5
    )  # memory elsewhere, sums in another order
    assert abs(run(moved) - run(plain)).max() <= 1.5 / 255


def test_sequential_offload(folder):
    """All weights wait on `meta`, and all that is fed to them must not.

    (accelerate itself cannot run this without an accelerator.)
    """
    pipe = load(folder)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert all(p.is_meta for p in pipe.unet.parameters()) and pipe._execution_device.type == "cpu"
    assert tokenize(pipe.tokenizer, [RED], pipe._execution_device).device.type == "cpu"
    assert pipe.prepare_latents(1, 2, generator=rng()).device.type == "cpu"
    with pytest.raises(ValueError, match="leaves no weights to tune"):
        pipe.tune(clip(), RED)


def test_hooks_are_freed_whatever_happens(pipe, monkeypatch):
    freed = []
    monkeypatch.setattr(TuneAVideoPipeline, "maybe_free_model_hooks", lambda self: freed.append(1))

    def stop(*_):
        raise KeyboardInterrupt

    for verb in (
        lambda: pipe(RED, callback_on_step_end=stop),
        lambda: pipe.invert(clip(), RED, callback_on_step_end=stop),
        lambda: pipe.tune(clip(), RED, callback=stop),
    ):
        freed.clear()
        with pytest.raises(KeyboardInterrupt):
            verb()
        assert freed
    order = pipe.model_cpu_offload_seq.split("->")
    assert set(order) == {k for k, v in pipe.components.items() if isinstance(v, torch.nn.Module)} | {
        "text_encoder_2"
    }


def test_ctrl_c_leaves_it_usable(pipe):
    want = pipe(RED, num_frames=2, generator=rng()).frames

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(RED, callback_on_step_end=stop)
    with pytest.raises(KeyboardInterrupt):
        pipe.invert(clip(), RED, callback_on_step_end=stop)
    assert (pipe(RED, num_frames=2, generator=rng()).frames == want).all()
    with pytest.raises(KeyboardInterrupt):
        pipe.tune(clip(), RED, callback=stop)
    assert not pipe.unet.training
    assert len(pipe.tune(clip(), RED)) == 2 and pipe(RED, num_frames=2).frames.shape == (1, 2, 16, 16, 3)


def test_videos_of_a_prompt_and_generators(folder):
    "Prompt by prompt, and each clip is what it would be alone."
    pipe = load(folder)
    how = dict(num_frames=2, output_type="latent")
    four = pipe(
        [RED, BLUE],
        num_videos_per_prompt=2,
        negative_prompt=["", RED],
        generator=[rng(i) for i in range(4)],
        **how,
    ).frames
    for i, (p, leave) in enumerate(zip((RED, RED, BLUE, BLUE), ("", "", RED, RED))):
        assert (
            four[i : i + 1] - pipe(p, negative_prompt=leave, generator=rng(i), **how).frames
        ).abs().max() < 1e-4 * four.abs().max()
    assert (
        pipe([RED, BLUE], generator=rng(), **how).frames
        - pipe([RED, BLUE], generator=rng(), batched_guidance=False, **how).frames
    ).abs().max() < 1e-4 * four.abs().max()
    z = torch.randn(1, 4, 2, 8, 8, generator=rng())
    with pytest.warns(UserWarning, match="will be equal"):
        same = pipe(RED, latents=z, num_videos_per_prompt=2).frames
    assert (same[0] == same[1]).all()
    other = pipe(RED, latents=z, num_videos_per_prompt=2, eta=1.0, generator=rng()).frames
    assert (other[0] != other[1]).any()


def test_outputs(pipe):
    how = dict(prompt=RED, num_frames=2, num_videos_per_prompt=2)
    out = {o: pipe(**how, generator=rng(), output_type=o).frames for o in OUTPUTS}
    assert (
        out["uint8"].shape == out["np"].shape == (2, 2, 16, 16, 3)
        and out["pt"].shape == (2, 2, 3, 16, 16)
        and out["latent"].shape == (2, 4, 2, 8, 8)
    )
    assert (
        out["np"].min() >= 0
        and out["np"].max() <= 1
        and (np.abs(out["np"] * 255 - out["uint8"]) <= 0.501).all()
    )
    assert all(
        (np.asarray(pil) == frame).all()
        for clips in zip(out["pil"], out["uint8"])
        for pil, frame in zip(*clips)
    )
    assert (decode_clip(pipe, out["latent"], "uint8") == out["uint8"]).all()
    assert (pipe(**how, generator=rng(), return_dict=False)[0] == out["np"]).all()
    pipe.vae.enable_slicing()
    assert np.abs(decode_clip(pipe, out["latent"]) - out["np"]).max() <= 1 / 255


def test_callbacks_see_and_change(folder):
    pipe = load(folder)
    seen = []

    def look(p, i, t, now):
        seen.append((i, int(t), sorted(now)))

    names = [
        k for k in pipe._callback_tensor_inputs if pipe.text_encoder_2 is not None or not k.startswith("add_")
    ]
    pipe(RED, num_frames=1, callback_on_step_end=look, callback_on_step_end_tensor_inputs=names)
    assert (
        [i for i, *_ in seen] == [0, 1, 2]
        and [t for _, t, _ in seen] == pipe.scheduler.timesteps.tolist()
        and seen[0][2] == sorted(names)
    )
    zero = pipe(
        RED,
        num_frames=1,
        output_type="latent",
        callback_on_step_end=lambda p, i, t, now: {"latents": now["latents"] * 0},
    ).frames
    assert (zero == 0).all()

    def enough(p, i, t, now):
        seen.append(i)
        p._interrupt = True

    seen.clear()
    pipe(RED, num_frames=1, callback_on_step_end=enough)
    assert seen == [0]
    seen.clear()
    pipe(RED, num_frames=1, callback_on_step_end=look)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="callback_on_step_end_tensor_inputs has 'noise'"):
        pipe(RED, callback_on_step_end_tensor_inputs=["noise"])


def test_prompts_already_encoded(pipe):
    from tune_a_video_nbs.ldm import encode_text

    how = dict(num_frames=2, generator=rng(), output_type="latent")
    want = pipe(RED, negative_prompt=BLUE, **how).frames
    got = pipe(
        prompt_embeds=encode_text(pipe, RED),
        negative_prompt_embeds=encode_text(pipe, BLUE),
        **how | dict(generator=rng()),
    ).frames
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (
        pipe.invert(clip(), prompt_embeds=encode_text(pipe, RED))
        - pipe.invert(latents=encode_clip(pipe, clip()), prompt=RED)
    ).abs().max() < 1e-4


@pytest.mark.parametrize("h, w", [(18, 22), (2, 2), (16, 30)])
def test_whatever_the_vae_can_halve_the_unet_takes(pipe, h, w):
    "The small VAE halves once. 9x11 latents do not halve in the UNet, and need not."
    assert pipe(RED, latents=pipe.invert(clip(2, h, w), RED)).frames.shape == (1, 2, h, w, 3)
    assert len(pipe.tune(clip(2, h, w), RED)) == 2


@pytest.mark.parametrize(
    "do, says",
    [
        (lambda p: p.invert(clip(2, 17, 16), RED), r"the clip is 16x17; this model takes multiples of 2"),
        (lambda p: p.tune(clip(2, 16, 19), RED), r"read_clip\(..., size=\(16, 20\)\)"),
        (lambda p: p(RED, height=17), "multiples of 2"),
        (lambda p: p(RED, num_frames=0), "at least one"),
        (lambda p: p.tune(clip(), ""), "the prompt is ''"),
        (lambda p: p.tune(clip(), "  "), "the prompt is"),
        (lambda p: p.tune(clip(), RED, steps=0), "steps=0"),
        (lambda p: p(" "), "the prompt is"),
        (lambda p: p(None), "the prompt is None"),
        (lambda p: p([]), "0 prompts"),
        (lambda p: p([RED, BLUE], negative_prompt=[RED]), "1 negative prompts for 2 prompts"),
        (
            lambda p: p(RED, latents=torch.zeros(1, 3, 2, 8, 8)),
            r"\(1, 3, 2, 8, 8\); this model takes \(b, 4, f, h, w\)",
        ),
        (lambda p: p(RED, latents=torch.zeros(4, 2, 8, 8)), "the latents have shape"),
        (lambda p: p(RED, latents=torch.zeros(1, 4, 0, 8, 8)), "the latents have shape"),
        (lambda p: p([RED] * 3, latents=torch.zeros(2, 4, 2, 8, 8)), "2 clips; give 1 or 3"),
        (
            lambda p: p(RED, latents=torch.zeros(1, 4, 2, 8, 8), num_frames=3),
            "num_frames is 3; these latents hold 2",
        ),
        (lambda p: p(RED, latents=torch.full((1, 4, 2, 8, 8), torch.nan)), "NaN"),
        (lambda p: p.invert(latents=torch.full((1, 4, 2, 8, 8), torch.inf), prompt=RED), "NaN or infinity"),
        (lambda p: p.invert(), "give a clip, or latents"),
        (lambda p: p(RED, generator=[rng(), rng()]), "2 generators for 1 clips"),
        (lambda p: p(RED, num_inference_steps=0), "take 1 to 1000"),
        (lambda p: p(RED, num_inference_steps=1000), "past the last trained one"),
        (lambda p: p.invert(clip(), RED, num_inference_steps=1001), "take 1 to 1000"),
        (lambda p: p.invert(clip(), RED, strength=1.5), "strength is 1.5"),
        (lambda p: p(RED, output_type="gif"), "output_type is 'gif'"),
        (lambda p: p(RED, num_videos_per_prompt=0), "at least 1"),
    ],
)
def test_bad_input(pipe, do, says):
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        do(pipe)
    assert all(v.equal(before[k]) for k, v in pipe.unet.state_dict().items()) and pipe.caption == ""


def test_long_and_missing_words_are_told(pipe):
    with pytest.warns(UserWarning, match=r"tokens and the model reads \d+; cut off: 'on the grass"):
        pipe("a red star " + "on the grass " * 8, num_frames=1)
    with pytest.warns(UserWarning, match="cut off"):
        pipe(RED, negative_prompt="on the grass " * 8, num_frames=1)
    with pytest.warns(UserWarning, match="one frame: there is no motion to learn"):
        pipe.tune(clip(1), RED)
    assert pipe("", latents=pipe.invert(clip(1), "")).frames.shape == (
        1,
        1,
        16,
        16,
        3,
    )  # the empty prompt is legal, and so is one frame
    pipe.update_settings(invert_with="caption")
    pipe.caption = ""
    with pytest.warns(UserWarning, match="best inverted with the clip's caption"):
        pipe.invert(clip())


def test_tuned_on_another_model(folders, tmp_path):
    pipe, other = load(folders["sd1"]), load(folders["v"])
    other.caption = BLUE
    other.save_tuned(tmp_path / "v.safetensors")
    before = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    pipe.caption = RED
    with pytest.raises(ValueError, match="was tuned on another model: its attention_head_dim is"):
        pipe.load_tuned(tmp_path / "v.safetensors")  # all shapes would fit
    wide = inflate(small_unet(block_out_channels=(32, 64)))
    save_tuned(wide, tmp_path / "wide.safetensors")  # no family written down
    with pytest.raises(ValueError, match="was tuned on another model"):
        pipe.load_tuned(tmp_path / "wide.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "v.safetensors").read_bytes()[:5000])
    with pytest.raises(ValueError, match="no whole safetensors file"):
        pipe.load_tuned(tmp_path / "cut.safetensors")
    with pytest.raises(FileNotFoundError, match="no file of tuned weights"):
        pipe.load_tuned(tmp_path / "none.safetensors")
    assert pipe.caption == RED and all(v.equal(before[k]) for k, v in pipe.unet.state_dict().items())


def weights(folder, part):
    return next((Path(folder) / part).glob("*.safetensors"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: weights(f, "unet").write_bytes(weights(f, "unet").read_bytes()[:1000]),
        lambda f: weights(f, "vae").write_bytes(weights(f, "vae").read_bytes()[:-1000]),
        lambda f: weights(f, "text_encoder").write_bytes(weights(f, "text_encoder").read_bytes()[:1000]),
        lambda f: weights(f, "unet").write_bytes(b""),
        lambda f: weights(f, "unet").unlink(),
        lambda f: weights(f, "vae").unlink(),
        lambda f: weights(f, "text_encoder").unlink(),
        lambda f: shutil.rmtree(f / "unet"),
        lambda f: shutil.rmtree(f / "vae"),
        lambda f: shutil.rmtree(f / "tokenizer"),
        lambda f: shutil.rmtree(f / "scheduler"),
        lambda f: (f / "model_index.json").write_text("{"),
        lambda f: (f / "unet" / "config.json").write_text('{"_class'),
        lambda f: (f / "settings.json").write_text("{"),
    ],
    ids=[
        "unet cut",
        "vae cut",
        "text cut",
        "unet empty",
        "no unet weights",
        "no vae weights",
        "no text weights",
        "no unet",
        "no vae",
        "no tokenizer",
        "no scheduler",
        "index cut",
        "config cut",
        "settings cut",
    ],
)
def test_a_broken_model_folder(folders, tmp_path, spoil):
    folder = Path(shutil.copytree(folders["sd1"], tmp_path / "model"))
    spoil(folder)
    with pytest.raises(ValueError, match="model") as e:
        load(folder)
    assert str(folder) in str(e.value) and "\n" not in str(e.value)


def test_models_of_another_kind(folders, tmp_path):
    folder = Path(shutil.copytree(folders["sd1"], tmp_path / "flux"))
    index = json.loads((folder / "model_index.json").read_text())
    del index["unet"]
    index |= dict(_class_name="FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"])
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        ValueError, match="is a FluxPipeline without unet: Tune-A-Video takes Stable Diffusion"
    ):
        load(folder)
    with pytest.raises(ValueError, match="takes 9 channels and gives 4: use a text-to-image model"):
        load(small_pipeline(tmp_path / "inpaint", in_channels=9))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no model_index.json"):
        load(tmp_path / "empty")
