"""What a person who knows diffusers expects of the pipeline, each kept to:

Loading, sharing, callbacks, adapters, export.
"""

import inspect
import json
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback, SDXLCFGCutoffCallback
from diffusers.utils import export_to_video
from small_nets import small_pipeline

from tune_a_video_nbs.edit import encode_clip
from tune_a_video_nbs.errors import InputError, TuneAVideoError
from tune_a_video_nbs.pipeline import TuneAVideoPipeline
from tune_a_video_nbs.prompts import encode_prompt

RED, BLUE = "a red star is bouncing on the grass", "a blue heart is bouncing in the snow"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(f=3, h=16, w=16, seed=0):
    return torch.randint(256, (f, h, w, 3), generator=rng(seed), dtype=torch.uint8).numpy()


def load(folder, **kwargs):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*replaced by DDIM")
        pipe = TuneAVideoPipeline.from_pretrained(folder, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    pipe.update_settings(num_inference_steps=3, guidance_scale=3.0, tune_steps=2)
    return pipe


def draw(pipe, prompt=BLUE, **kwargs):
    how = {"num_frames": 2, "generator": rng(), "output_type": "latent"} | kwargs
    return pipe(prompt, **how).frames


def state(pipe):
    return {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {"sd1": small_pipeline(made / "sd1"), "sdxl": small_pipeline(made / "sdxl", "sdxl")}


@pytest.fixture(params=["sd1", "sdxl"])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture
def pipe(folders):
    return load(folders["sd1"])


# --- loading and sharing


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_precision_reaches_every_part(folder, name):
    "B1: the network stayed in float32 under diffusers' official name."
    pipe = load(folder, **{name: torch.bfloat16})
    parts = [pipe.unet, pipe.vae, pipe.text_encoder]
    if pipe.text_encoder_2 is not None:
        parts.append(pipe.text_encoder_2)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.bfloat16}


def test_precision_by_part(folders):
    pipe = load(folders["sd1"], dtype={"unet": torch.bfloat16, "default": torch.float32})
    assert (pipe.unet.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)


def test_from_pipe_takes_an_image_pipeline(folders):
    "B4: a signature without types made it impossible."
    image = StableDiffusionPipeline.from_pretrained(
        folders["sd1"], safety_checker=None, requires_safety_checker=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = TuneAVideoPipeline.from_pipe(image)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae is image.vae and pipe.text_encoder is image.text_encoder
    pipe.update_settings(num_inference_steps=3, guidance_scale=3.0)
    assert torch.equal(draw(pipe), draw(load(folders["sd1"])))


def test_from_pipe_takes_our_own(pipe):
    pipe.tune(clip(), RED)
    again = TuneAVideoPipeline.from_pipe(pipe)
    again.set_progress_bar_config(disable=True)
    assert (again.caption, again.settings) == (RED, pipe.settings)
    assert torch.equal(draw(again), draw(pipe))


def test_an_image_pipeline_takes_a_tuned_network(pipe):
    "The other way: diffusers' own pipeline draws stills with what was tuned."
    from tune_a_video_nbs.inflate import deflate

    pipe.tune(clip(), RED, lr=1e-3)
    image = StableDiffusionPipeline.from_pipe(
        pipe,
        unet=deflate(pipe.unet),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    image.set_progress_bar_config(disable=True)
    z = torch.randn(1, 4, 8, 8, generator=rng())
    how = {"guidance_scale": 3.0, "num_inference_steps": 3, "output_type": "latent"}
    still = image(BLUE, latents=z, height=16, width=16, **how).images
    for layer in pipe.unet.modules():
        if type(layer).__name__ == "TemporalAttention":
            torch.nn.init.zeros_(layer.to_out[0].weight)
            torch.nn.init.zeros_(layer.to_out[0].bias)
    ours = pipe(BLUE, latents=z[:, :, None], **how).frames[:, :, 0]
    assert (still - ours).abs().max() < 1e-4 * ours.abs().max()


def test_settings_travel_in_the_index(folders, tmp_path):
    "B6, B7: they stood in a file of their own, which neither push_to_hub nor a Hub model had."
    pipe = load(folders["sd1"])
    pipe.update_settings(guidance_scale=7.0)
    pipe.caption = RED
    pipe.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "settings.json").exists()
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["settings"]["guidance_scale"] == 7.0 and index["caption"] == RED
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    again = TuneAVideoPipeline.from_pretrained(tmp_path / "saved")
    assert again.settings == pipe.settings and again.caption == RED


def test_what_is_pushed_to_the_hub_is_what_is_saved(pipe, tmp_path, monkeypatch):
    "B6: the upload happened before the index was mended."
    pushed = {}

    def upload(self, working_dir, *args, **kwargs):
        index = Path(working_dir) / "model_index.json"
        pushed.update(json.loads(index.read_text()))

    monkeypatch.setattr(
        "diffusers.pipelines.pipeline_utils.create_repo",
        lambda repo_id, **k: type("R", (), {"repo_id": repo_id}),
    )
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.load_or_create_model_card", lambda *a, **k: None)
    monkeypatch.setattr(
        "diffusers.pipelines.pipeline_utils.populate_model_card",
        lambda c, **k: type("C", (), {"save": lambda s, p: None})(),
    )
    monkeypatch.setattr(TuneAVideoPipeline, "_upload_folder", upload)
    pipe.update_settings(lr=1e-4)
    pipe.save_pretrained(str(tmp_path / "saved"), push_to_hub=True, repo_id="you/yours")
    assert pushed["settings"]["lr"] == 1e-4 and pushed["unet"][0] == "diffusers"


def test_settings_of_older_folders_are_read(folders, tmp_path):
    import shutil

    folder = Path(shutil.copytree(folders["sd1"], tmp_path / "old"))
    (folder / "settings.json").write_text(json.dumps({"lr": 1e-4, "caption": RED}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = TuneAVideoPipeline.from_pretrained(folder)
    assert pipe.settings["lr"] == 1e-4 and pipe.caption == RED


def test_unknown_settings_are_refused(pipe):
    with pytest.raises(InputError, match="no setting called steps; there is tune_steps"):
        pipe.update_settings(steps=3)


def test_the_package_exports_its_main_names():
    from tune_a_video_nbs import TuneAVideoPipeline as exported

    assert exported is TuneAVideoPipeline


def test_names_are_where_a_diffusers_user_looks():
    for name in ("check_inputs", "encode_prompt", "prepare_latents", "enable_freeu", "load_lora_weights"):
        assert inspect.isfunction(getattr(TuneAVideoPipeline, name))
    for name in ("guidance_scale", "num_timesteps", "do_classifier_free_guidance", "interrupt", "settings"):
        assert isinstance(getattr(TuneAVideoPipeline, name), property)
    for verb in (TuneAVideoPipeline.tune, TuneAVideoPipeline.invert, TuneAVideoPipeline.__call__):
        assert verb.__qualname__.startswith("TuneAVideoPipeline.")
    assert not [
        name
        for name, parameter in inspect.signature(TuneAVideoPipeline.__init__).parameters.items()
        if name != "self" and parameter.annotation is inspect.Parameter.empty
    ]


@pytest.mark.parametrize(
    "more", [{"num_class_embeds": 10}, {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 24}]
)
def test_a_network_that_asks_for_more_is_refused_when_opened(tmp_path, more):
    folder = small_pipeline(tmp_path / "more", **more)
    with pytest.raises(InputError, match="asks for more than words"):
        load(folder)


# --- drawing


def test_export_to_video_gives_the_right_colours(tmp_path):
    "B5: uint8 frames were multiplied by 255 once more and came out as a negative."
    pytest.importorskip("imageio")
    pipe = TuneAVideoPipeline.from_pretrained("sprites")
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(RED, num_frames=2, num_inference_steps=8, generator=rng()).frames
    assert frames.dtype == np.float32 and frames.min() >= 0 and frames.max() <= 1
    file = export_to_video(frames[0], str(tmp_path / "out.mp4"), fps=8)
    with av.open(file) as container:
        back = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    assert np.abs(back.astype(float) - 255 * frames[0]).mean() < 12


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_guidance_up_to_one_draws_with_the_words_alone(pipe, scale):
    "As diffusers: only above 1 is the network asked twice."
    assert torch.equal(draw(pipe, guidance_scale=scale), draw(pipe, guidance_scale=1))
    assert not torch.equal(draw(pipe, guidance_scale=scale), draw(pipe, "", guidance_scale=1))


@pytest.mark.parametrize("family, cutoff", [("sd1", SDCFGCutoffCallback), ("sdxl", SDXLCFGCutoffCallback)])
def test_official_callbacks(folders, family, cutoff):
    "The words lead alone after the cut, so the clip is neither that of full guidance nor that of none."
    pipe = load(folders[family])
    asked = []
    pipe.unet.register_forward_pre_hook(lambda net, args: asked.append(len(args[0])))
    cut = draw(pipe, callback_on_step_end=cutoff(cutoff_step_index=0, cutoff_step_ratio=None))
    assert asked == [2, 1, 1]
    assert not torch.equal(cut, draw(pipe)) and not torch.equal(cut, draw(pipe, guidance_scale=1))


def test_embeddings_of_two_lengths(pipe):
    "B16: this was a message of torch.cat."
    long = torch.zeros(1, 40, 96)
    with pytest.raises(InputError, match="encode both alike"):
        pipe(prompt_embeds=long, num_frames=1)
    assert pipe(prompt_embeds=long, negative_prompt_embeds=long, num_frames=1).frames.shape[1] == 1


def test_embeddings_in_place_of_words(folder):
    pipe = load(folder)
    embeds = pipe.encode_prompt(BLUE, negative_prompt=RED, height=16, width=16)
    names = [
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ]
    got = draw(pipe, None, height=16, width=16, **dict(zip(names, embeds)))
    assert torch.allclose(got, draw(pipe, negative_prompt=RED, height=16, width=16), atol=1e-4)


def test_sdxl_asks_for_its_summary(folders):
    pipe = load(folders["sdxl"])
    with pytest.raises(InputError, match="pooled_prompt_embeds"):
        pipe(prompt_embeds=torch.zeros(1, 20, 144), num_frames=1)


# --- tuning


def test_a_sample_inside_tune_reads_its_own_words(folders):
    "B2: while SDXL was tuned, every sample got the summary of the caption in place of its own."
    pipe = load(folders["sdxl"])
    before = draw(pipe)
    inside = []

    def look(step, loss, weights):
        inside.append(draw(pipe))

    pipe.tune(clip(), RED, steps=1, lr=1e-12, callback=look)
    assert torch.allclose(inside[0], before, atol=1e-4 * before.abs().max().item())


def test_what_learned_is_what_is_saved(folders, tmp_path):
    "B3: with another choice of what learns, most of it was lost."
    pipe = load(folders["sd1"])
    pipe.tune(clip(), RED, lr=1e-3, trainable_modules=("",))
    pipe.save_tuned(tmp_path / "all.safetensors")
    fresh = load(folders["sd1"])
    fresh.load_tuned(tmp_path / "all.safetensors")
    assert torch.equal(draw(fresh), draw(pipe)) and not torch.equal(draw(load(folders["sd1"])), draw(pipe))


def test_unload_tuned(folders, tmp_path):
    pipe = load(folders["sd1"])
    untuned, before = draw(pipe), state(pipe)
    pipe.tune(clip(), RED, lr=1e-3)
    pipe.save_tuned(tmp_path / "red.safetensors")
    pipe.tune(clip(seed=1), BLUE, lr=1e-3)
    pipe.unload_tuned()
    assert pipe.caption == "" and torch.equal(draw(pipe), untuned)
    pipe.load_tuned(tmp_path / "red.safetensors")
    assert pipe.caption == RED
    pipe.unload_tuned()
    assert all(torch.equal(value, before[name]) for name, value in state(pipe).items())


def test_a_failing_callback_leaves_caption_and_weights_consistent(pipe, tmp_path):
    "B13: an error of the caller's own put the caption back and left the weights."
    before = state(pipe)

    def fail(step, loss, weights):
        if step == 1:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        pipe.tune(clip(), RED, steps=4, lr=1e-3, callback=fail)
    changed = any(not torch.equal(value, before[name]) for name, value in state(pipe).items())
    assert changed and pipe.caption == RED
    with pytest.raises(InputError):
        pipe.tune(clip(), BLUE, steps=0)
    assert pipe.caption == RED
    pipe.unload_tuned()
    assert all(torch.equal(value, before[name]) for name, value in state(pipe).items())


def test_another_clip_is_not_silently_inverted_with_the_caption(pipe):
    pipe.update_settings(invert_with="caption")
    pipe.tune(clip(), RED)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.invert(clip())
        pipe.invert(clip(seed=1), BLUE)
    with pytest.warns(UserWarning, match="another clip than the tuned one"):
        pipe.invert(clip(seed=1))


def test_warnings_point_at_the_caller(pipe):
    with pytest.warns(UserWarning, match="one frame") as heard:
        pipe.tune(clip(1), RED)
    assert [w.filename for w in heard if "one frame" in str(w.message)] == [__file__]


def test_one_class_catches_our_errors(pipe):
    for do in (lambda: pipe(" "), lambda: pipe.invert(), lambda: pipe.load_tuned("none.safetensors")):
        with pytest.raises(TuneAVideoError):
            do()


# --- adapters


def lora_file(path, unet, names, seed=0):
    "A small adapter in peft's layout, as diffusers saves it."
    from safetensors.torch import save_file

    weights, g = {}, rng(seed)
    for name in names:
        out_width, in_width = unet.get_parameter(f"{name}.weight").shape
        weights[f"unet.{name}.lora_A.weight"] = torch.randn(4, in_width, generator=g)
        weights[f"unet.{name}.lora_B.weight"] = torch.randn(out_width, 4, generator=g) * 0.1
    save_file(weights, path)
    return path


def test_lora_through_diffusers(folder, tmp_path):
    "Loaded it changes the clip, unloaded it does not, fused it stays."
    pytest.importorskip("peft")
    pipe = load(folder)
    plain = draw(pipe)
    names = [n.removesuffix(".weight") for n in pipe.unet.state_dict() if n.endswith("attn2.to_k.weight")]
    lora_file(tmp_path / "lora.safetensors", pipe.unet, names)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    with_lora = draw(pipe)
    assert (with_lora - plain).abs().max() > 1e-3
    pipe.unload_lora_weights()
    assert torch.equal(draw(pipe), plain)
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(draw(pipe), with_lora, atol=1e-3 * with_lora.abs().max().item())


def test_textual_inversion_of_several_vectors(pipe, tmp_path):
    "A learned word of three vectors is three tokens."
    vectors = torch.randn(3, 96, generator=rng())
    torch.save({"<mine>": vectors}, tmp_path / "mine.bin")
    one = encode_prompt(pipe, ["a red star"], 16, 16).prompt_embeds
    pipe.load_textual_inversion(str(tmp_path), weight_name="mine.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        three = encode_prompt(pipe, ["a red <mine>"], 16, 16).prompt_embeds
    by_hand = pipe.maybe_convert_prompt("a red <mine>", pipe.tokenizer)
    again = encode_prompt(pipe, [by_hand], 16, 16).prompt_embeds
    assert torch.equal(again, three)  # what is spelled out already stays
    ids = pipe.tokenizer(by_hand).input_ids
    assert len(ids) == 1 + 2 + 3 + 1 and not torch.equal(one, three)


def test_freeu_and_slicing(pipe):
    plain = draw(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert not torch.equal(draw(pipe), plain)
    pipe.disable_freeu()
    assert torch.equal(draw(pipe), plain)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    assert encode_clip(pipe, clip()).shape == (1, 4, 3, 8, 8)


def test_ip_adapter_is_refused(pipe):
    with pytest.raises(InputError, match="IP-Adapter"):
        pipe.load_ip_adapter("h94/IP-Adapter", subfolder="models", weight_name="ip-adapter_sd15.bin")


def test_an_image_pipeline_still_opens_the_bundled_folder():
    from tune_a_video_nbs.ldm import model_path

    pipe = DiffusionPipeline.from_pretrained(model_path("sprites"))
    assert type(pipe) is StableDiffusionPipeline
