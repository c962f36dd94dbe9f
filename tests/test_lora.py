"LoRA files of three makers on three families, against the formula by hand; and files that do not fit."

import json

import pytest
import torch
from base_models import check_whole_method, draw, make_families, rng
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import logging
from safetensors.torch import load_file, save_file

from tune_a_video_nbs import lora as lora_module
from tune_a_video_nbs.bases import load_base
from tune_a_video_nbs.errors import InputError, MissingFileError, MissingPackageError
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.lora import fuse_lora, lora_layers

RANK = 2
UNET_LAYERS = (
    "attn1.to_q",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "resnets.0.conv1",
    "proj_in",
)
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    logging.set_verbosity_error()
    return make_families(tmp_path_factory.mktemp("models"))


def changed_layers(pipe):
    "Return layers of all kinds, by part and name: attention, feed-forward, convolution, text."
    layers = {}
    for part, endings in (
        ("unet", UNET_LAYERS),
        ("text_encoder", TEXT_LAYERS),
        ("text_encoder_2", TEXT_LAYERS),
    ):
        network = getattr(pipe, part, None)
        if network is None:
            continue
        for name, layer in network.named_modules():
            if name.endswith(endings):
                layers[part, name] = layer
    return layers


def random_matrices(layer, generator):
    "Return A and B for a matrix or a convolution."
    width, *rest = layer.weight.shape
    a = torch.randn(RANK, *rest, generator=generator) * 0.3
    b = torch.randn(width, RANK, *[1] * (len(rest) - 1), generator=generator) * 0.3
    return a, b


def product(a, b):
    "Return B A, written out for matrices and for convolutions."
    if a.ndim == 2:
        return b @ a
    return torch.einsum("orxy,rihw->oihw", b, a)


def file_names(style, part, name):
    "Return what a maker's files call A and B of a layer, and its alpha if they have one."
    if part != "unet" and style != "flat":
        name = (
            f"text_model.{name.removeprefix('text_model.')}"  # transformers 5 dropped this, the files have it
        )
    if style in ("kohya", "kohya xl"):
        prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[part]
        if style == "kohya xl" and part == "text_encoder":
            prefix = "lora_te1"
        layer = f"{prefix}_{name.replace('.', '_')}"
        return f"{layer}.lora_down.weight", f"{layer}.lora_up.weight", f"{layer}.alpha"
    if style == "diffusers":
        word = "lora" if part == "unet" else "lora_linear_layer"
        return f"{part}.{name}.{word}.down.weight", f"{part}.{name}.{word}.up.weight", None
    return f"{part}.{name}.lora_A.weight", f"{part}.{name}.lora_B.weight", None


def peft_metadata(layers, alpha, **more):
    "Return what peft writes beside the weights."
    facts = {}
    for part in {part for part, _ in layers}:
        facts[f"{part}.r"] = RANK
        facts[f"{part}.lora_alpha"] = alpha
        facts[f"{part}.target_modules"] = [name for p, name in layers if p == part]
        facts |= {f"{part}.{key}": value for key, value in more.items()}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(facts)}


def write_lora(pipe, path, style, alpha=None, **metadata):
    "Write a LoRA in a maker's style. Return, by hand, what it adds to each layer where alpha is the rank."
    generator = rng(5)
    file, by_hand = {}, {}
    layers = changed_layers(pipe)
    for (part, name), layer in layers.items():
        a, b = random_matrices(layer, generator)
        name_a, name_b, name_alpha = file_names(style, part, name)
        file[name_a], file[name_b] = a, b
        if name_alpha is not None and alpha is not None:
            file[name_alpha] = torch.tensor(float(alpha))
        by_hand[part, name] = product(a, b)
    about = peft_metadata(layers, alpha, **metadata) if style == "peft" and alpha is not None else None
    save_file(file, path, about)
    return by_hand


def weights_of(pipe):
    "Return copies of all weights, by part and name."
    weights = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipe, part, None) is not None:
            for name, weight in getattr(pipe, part).state_dict().items():
                weights[part, name] = weight.clone()
    return weights


def check_fused(pipe, before, by_hand, factor, eps=1e-5):
    "Assert W + factor * B A for each layer of the file, and that nothing else moved or was added."
    after = weights_of(pipe)
    assert set(after) == set(before)
    for (part, name), weight in after.items():
        change = by_hand.get((part, name.removesuffix(".weight")))
        if change is None:
            assert weight.equal(before[part, name]), name
        else:
            assert (weight - before[part, name] - factor * change).abs().max() < eps, name


@pytest.mark.parametrize("shape", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize(
    "style, alpha, scale",
    [
        ("kohya", 1, 0.7),
        ("kohya", None, 1.0),
        ("diffusers", None, 0.5),
        ("peft", None, 1.0),
        ("peft", 6, 0.5),
        ("flat", None, -1.0),
        ("peft", None, 0.0),
    ],
)
def test_lora_by_hand(folders, tmp_path, shape, style, alpha, scale):
    "W + scale * alpha/rank * B A (Hu et al. 2022), to rounding; all else untouched."
    if shape == "sdxl" and style == "kohya":
        style = "kohya xl"
    path = tmp_path / "lora.safetensors"
    before = load_base(folders[shape])
    by_hand = write_lora(before, path, style, alpha)
    pipe = load_base(folders[shape], lora=path, lora_scale=scale)
    check_fused(pipe, weights_of(before), by_hand, scale * (alpha or RANK) / RANK)
    assert len(lora_layers(path)) == len(by_hand)
    if scale == 0.7:
        check_whole_method(pipe)


@pytest.mark.parametrize(
    "shape, image_pipeline", [("sd1", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]
)
def test_before_inflation_or_after_is_the_same(folders, tmp_path, shape, image_pipeline):
    path = tmp_path / "lora.safetensors"
    image = image_pipeline.from_pretrained(folders[shape])
    write_lora(image, path, "diffusers")
    pipe = load_base(folders[shape], lora=path, lora_scale=0.4)
    fuse_lora(image, path, 0.4)
    for name, weight in inflate(image.unet).state_dict().items():
        assert weight.equal(pipe.unet.state_dict()[name]), name


@pytest.mark.parametrize(
    "metadata, alpha, factor",
    [({"use_rslora": True}, 3, 3 / RANK**0.5), ({"alpha_pattern": {"proj_in": 8}}, 2, 1.0)],
)
def test_what_peft_notes_beside_the_weights(folders, tmp_path, metadata, alpha, factor):
    "Rank-stabilised LoRA (Kalajdzievski 2023) divides by the rank's root; a layer may have its own alpha."
    path = tmp_path / "lora.safetensors"
    before = load_base(folders["sd1"])
    by_hand = write_lora(before, path, "peft", alpha, **metadata)
    if "alpha_pattern" in metadata:
        for part, name in by_hand:
            if name.endswith("proj_in"):
                by_hand[part, name] = by_hand[part, name] * 8 / alpha
    check_fused(load_base(folders["sd1"], lora=path), weights_of(before), by_hand, factor)


def test_several_lora_add_up(folders, tmp_path):
    before = load_base(folders["sd1"])
    path = tmp_path / "lora.safetensors"
    by_hand = write_lora(before, path, "kohya")
    twice = load_base(folders["sd1"], lora=[path, path], lora_scale=[0.3, 0.4])
    check_fused(twice, weights_of(before), by_hand, 0.7)
    both_alike = load_base(folders["sd1"], lora=[path, str(path)], lora_scale=0.25)
    check_fused(both_alike, weights_of(before), by_hand, 0.5)
    with pytest.raises(InputError, match="1 scales for 2 LoRA"):
        load_base(folders["sd1"], lora=[path, path], lora_scale=[1.0])


def test_a_base_in_half_precision(folders, tmp_path):
    before = load_base(folders["sd1"], dtype=torch.bfloat16)
    by_hand = write_lora(before, tmp_path / "lora.safetensors", "kohya")
    pipe = load_base(folders["sd1"], lora=tmp_path / "lora.safetensors", dtype=torch.bfloat16)
    assert pipe.unet.dtype == torch.bfloat16
    check_fused(pipe, weights_of(before), by_hand, 1.0, eps=0.03)  # weights below 4, eight bits of each


# ---- what diffusers leaves out with a line in a log, and we refuse


@pytest.mark.parametrize("style", ["kohya", "diffusers", "peft"])
@pytest.mark.parametrize(
    "wrong", ["stray layer", "another part", "other shape", "lone A", "lone B", "DoRA", "no A"]
)
def test_a_file_that_does_not_fit_changes_nothing(folders, tmp_path, style, wrong):
    pipe = load_base(folders["sd1"])
    path = tmp_path / "lora.safetensors"
    write_lora(pipe, path, style)
    good = load_file(path)
    first_a, first_b, _ = file_names(style, "unet", "down_blocks.0.attentions.0.proj_in")
    assert first_a in good and first_b in good
    stray_a, stray_b, _ = file_names(style, "unet", "nowhere")
    second_a, second_b, _ = file_names(style, "text_encoder_2", "encoder.layers.0.mlp.fc1")
    thin_a, thin_b = torch.ones(RANK, 4), torch.ones(4, RANK)
    bad, message = {
        "stray layer": (
            good | {stray_a: thin_a, stray_b: thin_b},
            r"made for another model: \d+ of its \d+ layers",
        ),
        "another part": (good | {second_a: thin_a, second_b: thin_b}, "made for another model"),
        "other shape": (good | {first_b: torch.zeros(3, RANK)}, "made for another model"),
        "lone A": ({k: v for k, v in good.items() if k != first_b}, "is not whole there"),
        "lone B": ({k: v for k, v in good.items() if k != first_a}, "is not whole there"),
        "DoRA": (good | {f"{first_a.split('.lora')[0]}.dora_scale": torch.ones(3)}, "more than a plain LoRA"),
        "no A": ({"x.alpha": torch.ones(1)}, "holds no LoRA"),
    }[wrong]
    save_file(bad, tmp_path / "bad.safetensors")
    before = weights_of(pipe)
    with pytest.raises(InputError, match=message):
        fuse_lora(pipe, tmp_path / "bad.safetensors")
    check_fused(pipe, before, {}, 0.0)
    by_hand = write_lora(pipe, path, style)
    fuse_lora(pipe, path, 0.5)  # and the next one is fused as if nothing had been
    check_fused(pipe, before, by_hand, 0.5)


@pytest.mark.parametrize("made_for, used_on", [("sd1", "sdxl"), ("sdxl", "sd1"), ("sdxl", "sd2")])
@pytest.mark.parametrize("style", ["kohya", "diffusers", "peft"])
def test_a_lora_of_another_family(folders, tmp_path, made_for, used_on, style):
    write_lora(load_base(folders[made_for]), tmp_path / "lora.safetensors", style)
    pipe = load_base(folders[used_on])
    before = weights_of(pipe)
    with pytest.raises(InputError, match="made for another model"):
        fuse_lora(pipe, tmp_path / "lora.safetensors")
    check_fused(pipe, before, {}, 0.0)


def test_files_that_are_no_lora(folders, tmp_path):
    pipe = load_base(folders["sd1"])
    with pytest.raises(MissingFileError, match="no LoRA at"):
        fuse_lora(pipe, tmp_path / "none.safetensors")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(b"a pickle could be here")
    with pytest.raises(InputError, match="no whole safetensors file"):
        fuse_lora(pipe, tmp_path / "pytorch_lora_weights.bin")
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match="more than a plain LoRA"):
        fuse_lora(pipe, tmp_path / "x.safetensors")


def test_adapters_of_the_user_are_left_alone(folders, tmp_path):
    "Taking our adapter off would take off every other too."
    pipe = load_base(folders["sd1"])
    write_lora(pipe, tmp_path / "lora.safetensors", "diffusers")
    pipe.load_lora_weights(tmp_path, weight_name="lora.safetensors", adapter_name="mine")
    with pytest.raises(InputError, match="has adapters loaded"):
        fuse_lora(pipe, tmp_path / "lora.safetensors")
    assert pipe.get_active_adapters() == ["mine"]


def test_without_peft(folders, tmp_path, monkeypatch):
    "Said at once, before a base of gigabytes is read."
    monkeypatch.setattr(lora_module, "is_peft_available", lambda: False)
    with pytest.raises(MissingPackageError, match="pip install peft"):
        fuse_lora(None, tmp_path / "lora.safetensors")
    with pytest.raises(MissingPackageError, match="pip install peft"):
        load_base(tmp_path / "never-read", lora=tmp_path / "lora.safetensors")
    assert draw(load_base(folders["sd1"])).isfinite().all()  # who has no LoRA needs no peft
