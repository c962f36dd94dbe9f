"Every form that models are kept in, written small and taken through tune, invert and edit."

import json
import pickle
import shutil
import sys

import pytest
import torch
from base_models import Bomb, check_whole_method, draw, make_families, random_clip, ready, rng
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.utils import logging
from one_file import only_configs, save_one_file, with_vae_attention
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from tune_a_video_nbs import families as families_module
from tune_a_video_nbs.bases import check_classes, load_base, load_single_file, stored_as
from tune_a_video_nbs.errors import InputError, MissingFileError
from tune_a_video_nbs.families import FAMILIES
from tune_a_video_nbs.pipeline import TuneAVideoPipeline

NETWORKS = ("vae", "text_encoder", "text_encoder_2", "unet")
HALF_PRECISION = 2**-11  # how far rounding to half precision may move a number, relative to it


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    logging.set_verbosity_error()
    return make_families(tmp_path_factory.mktemp("models"))


def rounded_once(pipe, want):
    "Assert that the image network's weights were rounded to half precision once, and not more."
    for name, weight in pipe.unet.state_dict().items():
        if "_temp" not in name:
            error = (weight - want.unet.state_dict()[name]).abs().max()
            assert error <= HALF_PRECISION * weight.abs().max(), name


# ---- one file


@pytest.mark.parametrize("shape, attends", [("sd1", False), ("sd1", True), ("sd2", False), ("sdxl", True)])
def test_one_file_draws_as_its_folder_does(folders, tmp_path, shape, attends):
    folder = folders[shape]
    if attends:
        folder = with_vae_attention(folder, tmp_path / "attends")
    more_than_weights = {"alphas_cumprod": torch.ones(3)}
    path = save_one_file(folder, tmp_path / "base.safetensors", shape, more_than_weights)
    pipe = load_base(path, config=only_configs(folder, tmp_path / "configs"))
    want = load_base(folder)
    for part in NETWORKS:
        if getattr(want, part) is not None:
            weights = getattr(want, part).state_dict()
            for name, weight in getattr(pipe, part).state_dict().items():
                assert weight.equal(weights[name]), (part, name)
    assert pipe.scheduler.config.prediction_type == want.scheduler.config.prediction_type
    assert pipe.config.force_zeros_for_empty_prompt == want.config.force_zeros_for_empty_prompt
    assert (draw(pipe) - draw(want)).abs().max() < 1e-4
    assert (ready(pipe).invert(random_clip()) - ready(want).invert(random_clip())).abs().max() < 1e-5
    latents = torch.randn(1, 4, 8, 8, generator=rng())
    decoded = [p.vae.eval().decode(latents).sample for p in (pipe, want)]
    assert (decoded[0] - decoded[1]).abs().max() < 1e-5
    check_whole_method(pipe)


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
def test_from_single_file_of_the_pipeline_itself(folders, tmp_path, shape):
    "What the pipeline inherits from diffusers opens a single file too."
    path = save_one_file(folders[shape], tmp_path / "base.safetensors", shape)
    pipe = TuneAVideoPipeline.from_single_file(
        str(path), config=str(only_configs(folders[shape], tmp_path / "configs")), local_files_only=True
    )
    assert (draw(pipe) - draw(load_base(folders[shape]))).abs().max() < 1e-4


def test_one_file_of_sd1_needs_only_a_tokenizer(folders, tmp_path, monkeypatch):
    "The configs are ours. (Shrunk here: the true file has 4 GB.)"
    unet = UNet2DConditionModel.load_config(folders["sd1"], subfolder="unet")
    vae = AutoencoderKL.load_config(folders["sd1"], subfolder="vae")
    text = CLIPTextConfig.from_pretrained(folders["sd1"], subfolder="text_encoder").to_dict()
    monkeypatch.setitem(FAMILIES, "sd15", {"unet": unet, "text": [text]})
    monkeypatch.setattr(families_module, "SD_VAE", vae)
    path = save_one_file(folders["sd1"], tmp_path / "base.safetensors")
    pipe = load_base(path, tokenizer=folders["sd1"] / "tokenizer", frame_norm="shared")
    assert pipe.unet.config.frame_norm == "shared"
    assert draw(pipe).equal(draw(load_base(folders["sd1"], frame_norm="shared")))
    check_whole_method(pipe)


def test_one_file_with_frame_positions(folders, tmp_path):
    path = save_one_file(folders["sd1"], tmp_path / "base.safetensors")
    configs = only_configs(folders["sd1"], tmp_path / "configs")
    pipe = load_single_file(path, configs, frame_positions=True)
    assert pipe.unet.config.frame_positions


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
def test_one_file_in_half_precision(folders, tmp_path, shape):
    "As most are handed on: each weight is rounded once, and the method is the same."
    weights = load_file(save_one_file(folders[shape], tmp_path / "whole.safetensors", shape))
    half = {name: w.half() if w.is_floating_point() else w for name, w in weights.items()}
    save_file(half, tmp_path / "half.safetensors")
    configs = only_configs(folders[shape], tmp_path / "configs")
    pipe = load_base(tmp_path / "half.safetensors", config=configs, dtype=torch.float32)
    rounded_once(pipe, load_base(folders[shape]))
    check_whole_method(pipe)


def test_one_file_keeps_the_precision_that_is_asked_for(folders, tmp_path):
    "Making our pipeline of diffusers' must not turn every part to float32."
    path = save_one_file(folders["sd1"], tmp_path / "base.safetensors")
    configs = only_configs(folders["sd1"], tmp_path / "configs")
    pipe = load_base(path, config=configs, dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("shape, family", [("sd1", "SD 1.x"), ("sd2", "SD 2.x"), ("sdxl", "SDXL")])
def test_one_file_without_a_part(folders, tmp_path, shape, family):
    "Saved without its VAE or its words, as many are; or with one tensor lost, which diffusers finds late."
    weights = load_file(save_one_file(folders[shape], tmp_path / "whole.safetensors", shape))
    config = only_configs(folders[shape], tmp_path / "configs")

    def check_refused(message, lost):
        left = {name: weight for name, weight in weights.items() if not name.startswith(lost)}
        assert len(left) < len(weights)
        save_file(left, tmp_path / "part.safetensors")
        with pytest.raises(InputError, match=message):
            load_base(tmp_path / "part.safetensors", config=config)

    check_refused("without its vae: take the file that has all", "first_stage_model.")
    check_refused("without its text_encoder", ("cond_stage_model.", "conditioner.embedders.0."))
    if shape == "sdxl":
        check_refused("without its text_encoder_2", "conditioner.embedders.1.")
    text_norms = ("layers.1.layer_norm2.weight", "resblocks.1.ln_2.weight")
    text = next(name for name in sorted(weights) if name.endswith(text_norms))
    for lost in ("model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_out.weight", text):
        check_refused(f"is {family}, and does not fit its configs: weights are missing", lost)


def test_one_file_whose_lost_part_is_handed_over(folders, tmp_path):
    weights = load_file(save_one_file(folders["sd1"], tmp_path / "whole.safetensors"))
    left = {name: weight for name, weight in weights.items() if not name.startswith("first_stage_model.")}
    save_file(left, tmp_path / "part.safetensors")
    vae = AutoencoderKL.from_pretrained(folders["sd1"], subfolder="vae")
    configs = only_configs(folders["sd1"], tmp_path / "configs")
    pipe = load_base(tmp_path / "part.safetensors", config=configs, vae=vae)
    assert pipe.vae is vae
    assert draw(pipe).equal(draw(load_base(folders["sd1"])))


def test_configs_of_another_kind(folders, tmp_path):
    files = {
        shape: save_one_file(folders[shape], tmp_path / f"{shape}.safetensors", shape) for shape in folders
    }
    configs = {shape: only_configs(folders[shape], tmp_path / shape) for shape in folders}
    with pytest.raises(InputError, match="is SD 2.x: give config="):
        load_base(files["sd2"])
    with pytest.raises(InputError, match="is SDXL: give config="):
        load_base(files["sdxl"])
    for shape, other, message in (
        ("sd1", "sdxl", "is not: give config= of the file's own kind"),
        ("sdxl", "sd2", "own kind"),
        ("sd2", "sd1", "is SD 2.x, and does not fit"),
        ("sd1", "sd2", "does not fit"),
    ):
        with pytest.raises(InputError, match=message):
            load_base(files[shape], config=configs[other])
    with pytest.raises(MissingFileError, match="'owner/model' is not on this machine.*give config= a folder"):
        load_base(files["sdxl"], config="owner/model")
    with pytest.raises(MissingFileError, match="no model called"):
        load_base(files["sd2"], config=tmp_path / "nowhere")
    shutil.rmtree(configs["sdxl"] / "tokenizer_2")
    with pytest.raises(InputError, match="holds no tokenizer_2"):
        load_base(files["sdxl"], config=configs["sdxl"])


def test_files_that_are_no_base(tmp_path):
    with pytest.raises(MissingFileError, match="no checkpoint at"):
        load_base(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="it has no UNet"):
        load_base(tmp_path / "x.safetensors")
    only_names = {"model.diffusion_model.x": torch.zeros(1), "conditioner.embedders.0.x": torch.zeros(1)}
    save_file(only_names, tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match="is SDXL: give config="):
        load_base(tmp_path / "xl.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(InputError, match="no whole safetensors file"):
        load_base(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin"])
def test_a_pickle_is_never_run(tmp_path, suffix):
    mark = tmp_path / "was-here"
    with open(tmp_path / f"evil.{suffix}", "wb") as file:
        pickle.dump(Bomb(mark), file)
    with pytest.raises(InputError, match="is a pickle"):
        load_base(tmp_path / f"evil.{suffix}")
    assert not mark.exists()


# ---- which classes a model may name


def name_class(folder, part, library, class_name="UNet2DConditionModel"):
    index = json.loads((folder / "model_index.json").read_text())
    index[part] = [library, class_name]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def spying_module(tmp_path, monkeypatch):
    "A module on the path that would leave a mark if it were imported."
    (tmp_path / "spying_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "spying_module"
    assert not (tmp_path / "imported").exists()
    assert "spying_module" not in sys.modules


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_imports_no_module_that_it_names(folders, tmp_path, spying_module, part):
    folder = name_class(shutil.copytree(folders["sd1"], tmp_path / "evil"), part, spying_module)
    with pytest.raises(InputError, match=f"wants spying_module.UNet2DConditionModel as its {part}"):
        load_base(folder)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_config_folder_imports_no_module_that_it_names(folders, tmp_path, spying_module, part):
    path = save_one_file(folders["sd1"], tmp_path / "base.safetensors")
    config = name_class(only_configs(folders["sd1"], tmp_path / "evil"), part, spying_module)
    with pytest.raises(InputError, match="classes of diffusers and transformers only"):
        load_base(path, config=config)


def test_what_a_model_may_name():
    check_classes(
        "x", {"unet": ["diffusers", "UNet2DConditionModel"], "safety_checker": ["anything", "Else"]}
    )
    check_classes("x", {"unet": ["models.unet", "UNet3DConditionModel"], "text_encoder_2": [None, None]})
    for named in (["os", "system"], ["diffusers", "Nowhere"], ["transformers", "__name__"]):
        with pytest.raises(InputError, match="wants"):
            check_classes("x", {"vae": named})


# ---- folders


def to_half_precision(folder, into):
    "Write the networks of a folder as half-precision variants, and nothing else of their weights."
    whole = load_base(folder)
    for part in NETWORKS:
        if getattr(whole, part) is None:
            continue
        network_class = UNet2DConditionModel if part == "unet" else type(getattr(whole, part))
        network = network_class.from_pretrained(folder, subfolder=part)
        network.half().save_pretrained(into / part, variant="fp16")
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        if (folder / part).is_dir():
            shutil.copytree(folder / part, into / part)
    shutil.copy(folder / "model_index.json", into)
    return into


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
def test_half_precision_variants_are_found(folders, tmp_path, shape):
    folder = to_half_precision(folders[shape], tmp_path / "half")
    assert not (folder / "unet" / "diffusion_pytorch_model.safetensors").exists()
    pipe = load_base(folder)
    rounded_once(pipe, load_base(folders[shape]))
    check_whole_method(pipe)


@pytest.mark.parametrize(
    "files, want",
    [
        (["diffusion_pytorch_model.safetensors"], {}),
        (["diffusion_pytorch_model.fp16.safetensors"], {"variant": "fp16"}),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"], {}),
        (["diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.non_ema.safetensors"], {}),
        (["diffusion_pytorch_model.bin"], {"use_safetensors": False}),
        (["diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"], {}),
        (["diffusion_pytorch_model.fp16.bin"], {"variant": "fp16", "use_safetensors": False}),
        (["diffusion_pytorch_model-00001-of-00002.safetensors"], {}),
        (["diffusion_pytorch_model.fp16-00001-of-00002.safetensors"], {"variant": "fp16"}),
        (["config.json"], {}),
    ],
)
def test_how_a_folder_is_stored(tmp_path, files, want):
    (tmp_path / "unet").mkdir()
    for name in files:
        (tmp_path / "unet" / name).touch()
    assert stored_as(tmp_path) == want
    assert stored_as("owner/model") == {}


def to_dreambooth(folder, into):
    """Write a folder as the training script of its time left it.

    All weights are .bin, a safety checker is in the index but not in the folder, text has its old names.
    """
    for part, network_class in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        network = network_class.from_pretrained(folder, subfolder=part)
        network.save_pretrained(into / part, safe_serialization=False)
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    text.config.save_pretrained(into / "text_encoder")
    old_names = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in text.state_dict().items()}
    torch.save(old_names, into / "text_encoder" / "pytorch_model.bin")
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(folder / part, into / part)
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (into / "model_index.json").write_text(json.dumps(index))
    return into


def test_a_dreambooth_folder(folders, tmp_path):
    pipe = load_base(to_dreambooth(folders["sd1"], tmp_path / "sks"))
    assert draw(pipe).equal(draw(load_base(folders["sd1"])))
    check_whole_method(pipe)


def test_a_single_file_with_the_configs_of_a_dreambooth_folder(folders, tmp_path):
    "The safety checker and the feature extractor that its index names are not looked for."
    path = save_one_file(folders["sd1"], tmp_path / "base.safetensors")
    config = only_configs(to_dreambooth(folders["sd1"], tmp_path / "sks"), tmp_path / "configs")
    assert draw(load_base(path, config=config)).equal(draw(load_base(folders["sd1"])))


def test_other_folders_are_opened_as_the_pipeline_opens_them(folders):
    for folder in folders.values():
        assert draw(load_base(folder)).equal(draw(TuneAVideoPipeline.from_pretrained(folder)))
