"Every format that models are kept in, written small and taken through tune, invert and edit; and what a plan says."

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import tune_a_video_nbs.stable_diffusion as sd
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import logging
from safetensors.torch import load_file, save_file
from small_nets import STABLE, randomise, small_pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import tune_a_video_nbs.attention
from tune_a_video_nbs.bases import FAMILIES, fuse_lora, load_base
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.memory import on_meta, plan
from tune_a_video_nbs.pipeline import TuneAVideoPipeline

RED, BLUE = "a red star is bouncing on the grass", "a blue heart is bouncing in the snow"
logging.set_verbosity_error()
pytestmark = pytest.mark.filterwarnings("ignore:PNDMScheduler is replaced")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def clip(f=2):
    return torch.randint(256, (f, 16, 16, 3), generator=rng(), dtype=torch.uint8).numpy()


def ready(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe.settings |= dict(num_inference_steps=2, guidance_scale=3.0, tune_steps=2)
    return pipe


def draw(pipe, words=BLUE):
    return ready(pipe)(words, num_frames=2, generator=rng(), output_type="latent").frames


def whole_method(pipe):
    "Tune, invert, edit: what comes out is a clip, and the tuning has changed what it is."
    before = draw(pipe)
    losses = pipe.tune(clip(), RED, lr=1e-2)
    out = pipe(BLUE, latents=pipe.invert(clip())).frames
    assert (
        len(losses) == 2
        and np.isfinite(losses).all()
        and out.shape == (1, 2, 16, 16, 3)
        and not draw(pipe).equal(before)
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    return {
        "sd1": small_pipeline(made / "sd1"),
        "v": small_pipeline(made / "v", "sd2", PNDMScheduler(**STABLE, prediction_type="v_prediction")),
        "sdxl": small_pipeline(made / "sdxl", "sdxl"),
    }


class Bomb:
    "What a pickle can hold: a call, made by whoever reads it."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


# ---- one file, in the layout of the original code


def resnet_name(k):
    for ours, theirs in dict(
        norm1="in_layers.0",
        conv1="in_layers.2",
        time_emb_proj="emb_layers.1",
        norm2="out_layers.0",
        conv2="out_layers.3",
        conv_shortcut="skip_connection",
    ).items():
        k = re.sub(rf"^{ours}\.", f"{theirs}.", k)
    return k


def unet_to_ldm(net):
    "Names of the original code for a UNet: blocks in one row, counted through."
    c, out, row = net.config, {}, {}

    def put(prefix, layer, rename=lambda k: k):
        out.update({f"{prefix}.{rename(k)}": v for k, v in layer.state_dict().items()})

    put("time_embed.0", net.time_embedding.linear_1)
    put("time_embed.2", net.time_embedding.linear_2)
    put("input_blocks.0.0", net.conv_in)
    put("out.0", net.conv_norm_out)
    put("out.2", net.conv_out)
    if net.config.addition_embed_type:
        put("label_emb.0.0", net.add_embedding.linear_1)
        put("label_emb.0.2", net.add_embedding.linear_2)
    n = 1
    for block in net.down_blocks:
        for j, r in enumerate(block.resnets):
            put(f"input_blocks.{n}.0", r, resnet_name)
            if hasattr(block, "attentions"):
                put(f"input_blocks.{n}.1", block.attentions[j])
            n += 1
        for d in block.downsamplers or ():
            put(f"input_blocks.{n}.0.op", d.conv)
            n += 1
    for i, layer in ((0, net.mid_block.resnets[0]), (2, net.mid_block.resnets[1])):
        put(f"middle_block.{i}", layer, resnet_name)
    put("middle_block.1", net.mid_block.attentions[0])
    n = 0
    for block in net.up_blocks:
        for j, r in enumerate(block.resnets):
            put(f"output_blocks.{n}.0", r, resnet_name)
            at = 1
            if hasattr(block, "attentions"):
                put(f"output_blocks.{n}.1", block.attentions[j])
                at = 2
            if j == len(block.resnets) - 1:
                for u in block.upsamplers or ():
                    put(f"output_blocks.{n}.{at}.conv", u.conv)
            n += 1
    return {f"model.diffusion_model.{k}": v for k, v in out.items()}


def vae_to_ldm(net):
    levels, out = len(net.config.block_out_channels), {}
    for k, v in net.state_dict().items():
        k = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", k)
        k = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", k)
        k = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", k)
        k = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", k)
        k = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", k)
        if "mid_block.attentions.0" in k:
            for ours, theirs in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                k = k.replace(f"0.{ours}.", f"0.{theirs}.")
            k = k.replace("mid_block.attentions.0", "mid.attn_1")
            if v.ndim == 2:
                v = v[:, :, None, None]  # convolutions of one pixel, then
        out[
            "first_stage_model."
            + k.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        ] = v.contiguous()
    return out


OPENCLIP = {
    "encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
}


def text_to_openclip(net):
    "Names of OpenCLIP: queries, keys and values in one matrix, and a projection the other way round."
    own, out = {k.removeprefix("text_model."): v for k, v in net.state_dict().items()}, {}
    for k, v in own.items():
        if k == "text_projection.weight":
            out["text_projection"] = v.T.contiguous()
            continue
        if re.search("[qkv]_proj", k):
            if "q_proj" in k:
                out[k.replace("self_attn.q_proj.", "attn.in_proj_")] = torch.cat(
                    [own[k.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                )
        else:
            out[k] = v
    for ours, theirs in OPENCLIP.items():
        out = {k.replace(ours, theirs): v for k, v in out.items()}
    return {k.replace("encoder.layers", "transformer.resblocks"): v for k, v in out.items()}


def text_to_clip(net):
    return {
        f"transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in net.state_dict().items()
    } | {"transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def words_to_ldm(folder, shape):
    "The text encoders, under the names of each family's files. SD 2.x reads the last layer but one, and its file has the last and a projection all the same."
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    if shape == "sd1":
        return {f"cond_stage_model.{k}": v for k, v in text_to_clip(text).items()}
    if shape == "v":
        unread = {"text_projection": torch.ones(96, 96)} | {
            k.replace("resblocks.0", "resblocks.23"): torch.ones_like(v)
            for k, v in text_to_openclip(text).items()
            if "resblocks.0" in k
        }
        return {f"cond_stage_model.model.{k}": v for k, v in (text_to_openclip(text) | unread).items()}
    second = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
    both = {f"conditioner.embedders.0.{k}": v for k, v in text_to_clip(text).items()}
    return both | {f"conditioner.embedders.1.model.{k}": v for k, v in text_to_openclip(second).items()}


def to_one_file(folder, path, shape="sd1", extra={}):
    "A folder as the one file that its original code would have saved."
    unet, vae = (
        UNet2DConditionModel.from_pretrained(folder, subfolder="unet"),
        AutoencoderKL.from_pretrained(folder, subfolder="vae"),
    )
    save_file(unet_to_ldm(unet) | vae_to_ldm(vae) | words_to_ldm(folder, shape) | extra, path)
    return path


def with_attention(folder, into):
    "The same model with a VAE that attends, as Stable Diffusion's does."
    shutil.copytree(folder, into)
    config = AutoencoderKL.load_config(folder, subfolder="vae") | dict(mid_block_add_attention=True)
    randomise(AutoencoderKL.from_config(config)).save_pretrained(into / "vae")
    return into


def only_configs(folder, into):
    "What a single file needs beside it: no weights."
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return into


@pytest.mark.parametrize("shape, attends", [("sd1", False), ("sd1", True), ("v", False), ("sdxl", True)])
def test_one_file(folders, tmp_path, shape, attends):
    "It draws and inverts as its folder does: with a VAE that attends as with one that does not, and each family with its own way to keep words."
    folder = with_attention(folders[shape], tmp_path / "sd1") if attends else folders[shape]
    path = to_one_file(
        folder, tmp_path / "base.safetensors", shape, dict(alphas_cumprod=torch.ones(3))
    )  # such files hold more than weights
    pipe, want = load_base(path, config=only_configs(folder, tmp_path / "configs")), load_base(folder)
    for part in ("vae", "text_encoder", "text_encoder_2", "unet"):
        if net := getattr(want, part):
            assert all(v.equal(net.state_dict()[k]) for k, v in getattr(pipe, part).state_dict().items()), (
                part
            )
    assert (
        pipe.scheduler.config.prediction_type == want.scheduler.config.prediction_type
    )  # no file says that SD 2.1 predicts v: its config does
    assert (draw(pipe) - draw(want)).abs().max() < 1e-4 and (
        ready(pipe).invert(clip()) - ready(want).invert(clip())
    ).abs().max() < 1e-5
    z = torch.randn(1, 4, 2, 8, 8, generator=rng())
    for o in (pipe, want):
        o.vae.eval()
    assert (pipe.vae.decode(z[:, :, 0]).sample - want.vae.decode(z[:, :, 0]).sample).abs().max() < 1e-5
    whole_method(pipe)


def test_one_file_of_sd1_needs_no_configs(folders, tmp_path, monkeypatch):
    "Only the tokenizer, 1.5 MB, must come from somewhere. (Shrunk here: the true file has 4 GB.)"
    unet, vae = (
        kind.load_config(folders["sd1"], subfolder=sub)
        for kind, sub in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    text = CLIPTextConfig.from_pretrained(folders["sd1"], subfolder="text_encoder").to_dict()
    monkeypatch.setitem(FAMILIES, "sd15", dict(unet=unet, text=[text]))
    monkeypatch.setattr(sd, "SD_VAE", vae)
    path = to_one_file(folders["sd1"], tmp_path / "base.safetensors")
    pipe = load_base(path, tokenizer=folders["sd1"] / "tokenizer", frame_norm="shared")
    assert pipe.unet.config.frame_norm == "shared" and draw(pipe).equal(
        draw(load_base(folders["sd1"], frame_norm="shared"))
    )
    whole_method(pipe)


@pytest.mark.parametrize("shape", ["sd1", "v", "sdxl"])
def test_one_file_in_half_precision(folders, tmp_path, shape):
    "As most are handed on: each weight rounded once, and the same method."
    path, want = to_one_file(folders[shape], tmp_path / "whole.safetensors", shape), load_base(folders[shape])
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()},
        tmp_path / "half.safetensors",
    )
    pipe = load_base(
        tmp_path / "half.safetensors",
        config=only_configs(folders[shape], tmp_path / "configs"),
        torch_dtype=torch.float32,
    )
    for name, w in pipe.unet.state_dict().items():
        if "_temp" not in name:
            assert (w - want.unet.state_dict()[name]).abs().max() <= 2**-11 * w.abs().max(), name
    whole_method(pipe)


@pytest.mark.parametrize("shape, kind", [("sd1", "SD 1.x"), ("v", "SD 2.x"), ("sdxl", "SDXL")])
def test_one_file_that_is_not_whole(folders, tmp_path, shape, kind):
    "Saved without its VAE or its words, as many are; with one tensor lost, which the libraries below would find only when it is used, or never."
    weights, config = (
        load_file(to_one_file(folders[shape], tmp_path / "whole.safetensors", shape)),
        only_configs(folders[shape], tmp_path / "configs"),
    )

    def refused(says, lost):
        save_file({k: v for k, v in weights.items() if not k.startswith(lost)}, tmp_path / "part.safetensors")
        with pytest.raises(ValueError, match=says):
            load_base(tmp_path / "part.safetensors", config=config)
        assert len(load_file(tmp_path / "part.safetensors")) < len(weights)

    refused("without its vae: take the file that has all", "first_stage_model.")
    refused("without its text_encoder", ("cond_stage_model.", "conditioner.embedders.0."))
    if shape == "sdxl":
        refused("without its text_encoder_2", "conditioner.embedders.1.")
    text = next(
        k for k in sorted(weights) if k.endswith(("layers.1.layer_norm2.weight", "resblocks.1.ln_2.weight"))
    )
    for lost in ("model.diffusion_model.out.2.weight", "first_stage_model.decoder.conv_out.weight", text):
        refused(f"is {kind}, and does not fit its configs: weights are missing", lost)


def test_configs_of_another_kind(folders, tmp_path):
    files = {k: to_one_file(folders[k], tmp_path / f"{k}.safetensors", k) for k in folders}
    configs = {k: only_configs(folders[k], tmp_path / k) for k in folders}
    for k, says in (("v", "is SD 2.x: give config="), ("sdxl", "is SDXL: give config=")):
        with pytest.raises(ValueError, match=says):
            load_base(files[k])
    for k, other, says in (
        ("sd1", "sdxl", "is not: give config= of the file's own kind"),
        ("sdxl", "v", "own kind"),
        ("v", "sd1", "is SD 2.x, and does not fit"),
        ("sd1", "v", "does not fit"),
    ):
        with pytest.raises(ValueError, match=says):
            load_base(files[k], config=configs[other])
    with pytest.raises(
        FileNotFoundError, match="'owner/model' is not on this machine.*give config= a folder"
    ):
        load_base(files["sdxl"], config="owner/model")
    with pytest.raises(FileNotFoundError, match="no model called"):
        load_base(files["v"], config=tmp_path / "nowhere")
    shutil.rmtree(configs["sdxl"] / "tokenizer_2")
    with pytest.raises(ValueError, match="holds no tokenizer_2"):
        load_base(files["sdxl"], config=configs["sdxl"])


def test_files_that_are_no_base(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        load_base(tmp_path / "none.safetensors")
    save_file(dict(x=torch.zeros(1)), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="it has no UNet"):
        load_base(tmp_path / "x.safetensors")
    save_file(
        {"model.diffusion_model.x": torch.zeros(1), "conditioner.embedders.0.x": torch.zeros(1)},
        tmp_path / "xl.safetensors",
    )
    with pytest.raises(ValueError, match="is SDXL: give config="):
        load_base(tmp_path / "xl.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        load_base(tmp_path / "cut.safetensors")
    mark = tmp_path / "was-here"
    with open(tmp_path / "evil.ckpt", "wb") as f:
        pickle.dump(Bomb(mark), f)
    with pytest.raises(ValueError, match="is a pickle"):
        load_base(tmp_path / "evil.ckpt")
    assert not mark.exists()


# ---- folders


@pytest.mark.parametrize("shape", ["sd1", "v", "sdxl"])
def test_half_precision_variants(folders, tmp_path, shape):
    "Only `*.fp16.safetensors` is there: found without being told."
    whole = load_base(folders[shape])
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if not (net := getattr(whole, part)):
            continue
        kind, sub = (UNet2DConditionModel, part) if part == "unet" else (type(net), part)
        kind.from_pretrained(folders[shape], subfolder=sub).half().save_pretrained(
            tmp_path / "half" / part, variant="fp16"
        )
    for part in ("tokenizer", "tokenizer_2", "scheduler"):
        if (folders[shape] / part).is_dir():
            shutil.copytree(folders[shape] / part, tmp_path / "half" / part)
    shutil.copy(folders[shape] / "model_index.json", tmp_path / "half")
    assert not (tmp_path / "half" / "unet" / "diffusion_pytorch_model.safetensors").exists()
    pipe = load_base(tmp_path / "half")
    for name, w in pipe.unet.state_dict().items():
        if "_temp" not in name:
            assert (
                w - whole.unet.state_dict()[name]
            ).abs().max() <= 2**-11 * w.abs().max()  # rounded to half once
    whole_method(pipe)


def to_dreambooth(folder, into):
    "As the training script of its time left it: all weights as .bin, a safety checker in the index but not in the folder, text under its old names."
    for part, kind in (("unet", UNet2DConditionModel), ("vae", AutoencoderKL)):
        kind.from_pretrained(folder, subfolder=part).save_pretrained(into / part, safe_serialization=False)
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    text.config.save_pretrained(into / "text_encoder")
    torch.save(
        {f"text_model.{k.removeprefix('text_model.')}": v for k, v in text.state_dict().items()},
        into / "text_encoder" / "pytorch_model.bin",
    )
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(folder / part, into / part)
    index = json.loads((folder / "model_index.json").read_text())
    (into / "model_index.json").write_text(
        json.dumps(
            index
            | dict(
                safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
                feature_extractor=["transformers", "CLIPFeatureExtractor"],
            )
        )
    )
    return into


def test_a_dreambooth_folder(folders, tmp_path):
    pipe = load_base(to_dreambooth(folders["sd1"], tmp_path / "sks"))
    assert draw(pipe).equal(draw(load_base(folders["sd1"])))
    whole_method(pipe)


def test_other_folders_are_as_before(folders):
    for folder in folders.values():
        assert draw(load_base(folder)).equal(draw(TuneAVideoPipeline.from_pretrained(folder)))


# ---- LoRA

RANK = 2


def lora_layers(pipe):
    "Layers of all kinds that LoRA files change: attention, feed-forward, convolution, text."
    net = pipe.unet
    names = [
        n
        for n, m in net.named_modules()
        if n.endswith(("attn1.to_q", "attn2.to_v", "attn2.to_out.0", "ff.net.2"))
        or n.endswith("resnets.0.conv1")
        or n.endswith("proj_in")
    ]
    text = [
        n
        for n, m in pipe.text_encoder.named_modules()
        if n.endswith(("q_proj", "k_proj", "v_proj", "out_proj", "fc1"))
    ]
    return {f"unet.{n}": net.get_submodule(n) for n in names} | {
        f"text_encoder.{n}": pipe.text_encoder.get_submodule(n) for n in text
    }


def matrices(layer, g):
    w = layer.weight
    return torch.randn(RANK, *w.shape[1:], generator=g) * 0.3, torch.randn(
        len(w), RANK, *[1] * (w.ndim - 2), generator=g
    ) * 0.3


def write_lora(pipe, path, style, alpha=None):
    "The same LoRA in one of the ways files name it; and, by hand, what it is to add to each layer's weights."
    g, file, by_hand = rng(5), {}, {}
    for name, layer in lora_layers(pipe).items():
        a, b = matrices(layer, g)
        part, path_in = name.split(".", 1)
        if part == "text_encoder" and style != "flat":
            path_in = f"text_model.{path_in.removeprefix('text_model.')}"
        if style == "kohya":
            key = ("lora_unet_" if part == "unet" else "lora_te_") + path_in.replace(".", "_")
            file |= {
                f"{key}.lora_down.weight": a,
                f"{key}.lora_up.weight": b,
                f"{key}.alpha": torch.tensor(float(alpha or RANK)),
            }
        elif style == "diffusers":
            word = "lora" if part == "unet" else "lora_linear_layer"
            file |= {f"{part}.{path_in}.{word}.down.weight": a, f"{part}.{path_in}.{word}.up.weight": b}
        else:
            file |= {f"{part}.{path_in}.lora_A.weight": a, f"{part}.{path_in}.lora_B.weight": b}
        if a.ndim == 2:
            by_hand[name] = b @ a
        else:
            by_hand[name] = torch.einsum("orxy,rihw->oihw", b, a)

    def inside(p):
        return [n.removeprefix(f"{p}.") for n in by_hand if n.startswith(p)]

    about = {
        f"{p}.{k}": v
        for p in ("unet", "text_encoder")
        for k, v in (("r", RANK), ("lora_alpha", alpha), ("target_modules", inside(p)))
    }
    save_file(
        {k: v.contiguous() for k, v in file.items()},
        path,
        dict(format="pt", lora_adapter_metadata=json.dumps(about)) if style == "peft" and alpha else None,
    )
    return by_hand


@pytest.mark.parametrize(
    "style, alpha, scale",
    [
        ("kohya", 1, 0.7),
        ("kohya", None, 1.0),
        ("diffusers", None, 0.5),
        ("peft", None, 1.0),
        ("peft", 6, 0.5),
        ("flat", None, -1.0),
    ],
)
def test_lora_by_hand(folders, tmp_path, style, alpha, scale):
    "W + scale * alpha/rank * B A, to rounding; all else untouched; before inflation or after it, the same."
    plain = load_base(folders["sd1"])
    by_hand = write_lora(plain, tmp_path / "l.safetensors", style, alpha)
    pipe = load_base(folders["sd1"], lora=tmp_path / "l.safetensors", lora_scale=scale)
    layers, was = lora_layers(pipe), lora_layers(plain)
    for name, change in by_hand.items():
        assert (
            layers[name].weight - was[name].weight - scale * (alpha or RANK) / RANK * change
        ).abs().max() < 1e-5, name
    touched = {f"{n}.weight" for n in by_hand}
    for part in ("unet", "text_encoder"):
        for (k, v), w in zip(
            getattr(pipe, part).state_dict().items(), getattr(plain, part).state_dict().values()
        ):
            assert (f"{part}.{k}" in touched) != v.equal(w), k
    image = StableDiffusionPipeline.from_pretrained(folders["sd1"])
    fuse_lora(image, tmp_path / "l.safetensors", scale)
    for k, v in inflate(image.unet).state_dict().items():
        assert v.equal(pipe.unet.state_dict()[k]), k
    whole_method(pipe)


@pytest.mark.parametrize("style, alpha", [("kohya", 1), ("diffusers", None), ("peft", None), ("peft", 6)])
def test_lora_as_peft_fuses_it(folders, tmp_path, style, alpha):
    "diffusers' `load_lora_weights` and `fuse_lora` ask for peft, which we do not need."
    pytest.importorskip("peft")
    write_lora(load_base(folders["sd1"]), tmp_path / "l.safetensors", style, alpha)
    theirs, ours = (StableDiffusionPipeline.from_pretrained(folders["sd1"]) for _ in range(2))
    theirs.load_lora_weights(str(tmp_path / "l.safetensors"))
    theirs.fuse_lora(lora_scale=0.7)
    theirs.unload_lora_weights()
    fuse_lora(ours, tmp_path / "l.safetensors", 0.7)
    for part in ("unet", "text_encoder"):
        want, got = getattr(theirs, part).state_dict(), getattr(ours, part).state_dict()
        assert set(got) == set(want) and all((got[k] - want[k]).abs().max() < 1e-5 for k in want)


def test_several_lora_and_refusals(folders, tmp_path):
    base = load_base(folders["sd1"])
    write_lora(base, tmp_path / "l.safetensors", "kohya")
    twice, once = (
        load_base(folders["sd1"], lora=[tmp_path / "l.safetensors"] * 2, lora_scale=[0.3, 0.4]),
        load_base(folders["sd1"], lora=tmp_path / "l.safetensors", lora_scale=0.7),
    )
    for a, b in zip(twice.unet.parameters(), once.unet.parameters()):
        assert (a - b).abs().max() < 1e-5
    with pytest.raises(ValueError, match="1 scales for 2 LoRA"):
        load_base(folders["sd1"], lora=[tmp_path / "l.safetensors"] * 2, lora_scale=[1.0])
    before = {k: v.clone() for k, v in base.unet.state_dict().items()}

    def refused(says, weights):
        save_file(weights, tmp_path / "bad.safetensors")
        with pytest.raises(ValueError, match=says):
            fuse_lora(base, tmp_path / "bad.safetensors")
        assert all(v.equal(before[k]) for k, v in base.unet.state_dict().items())

    good = load_file(tmp_path / "l.safetensors")
    first = next(k.removesuffix(".lora_up.weight") for k in good if k.endswith("lora_up.weight"))
    refused(
        "made for another model: lora_unet_nowhere is not here",
        good
        | {
            "lora_unet_nowhere.lora_up.weight": torch.zeros(2, 2),
            "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 2),
        },
    )
    refused("has another shape here", good | {f"{first}.lora_up.weight": torch.zeros(3, RANK)})
    refused("more than a plain LoRA", good | {f"{first}.dora_scale": torch.zeros(3)})
    refused("not whole there", {k: v for k, v in good.items() if k != f"{first}.lora_up.weight"})
    with pytest.raises(FileNotFoundError, match="no LoRA at"):
        fuse_lora(base, tmp_path / "none.safetensors")


# ---- the plan


def measured(run):
    "How far the CPU's allocator rises above where it stood, by its own record: kernels' scratch included."
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        run()
    record = sorted(
        (e.start_ns(), e.nbytes()) for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    return int(np.cumsum([n for _, n in record]).max())


@pytest.mark.parametrize("shape", ["sd1", "sdxl"])
def test_the_count_is_what_the_allocator_sees(folders, shape, monkeypatch):
    """Beyond the count there are only kernels' scratch, a copy of a layer's input, weights and output at most, and of the tuning
    what learns: gradients and AdamW's averages. Attention is fused on the CPU too, as on a GPU."""
    F = torch.nn.functional
    monkeypatch.setattr(
        tune_a_video_nbs.attention,
        "attend",
        lambda q, k, v, bias=None: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
    )
    pipe, f, size = ready(load_base(folders[shape])), 6, (16, 16)
    tokens = pipe.tokenizer.model_max_length
    net = on_meta(pipe, torch.float32)["unet"]
    frames = torch.randint(256, (f, 32, 32, 3), generator=rng(), dtype=torch.uint8).numpy()
    z, learns = torch.randn(1, 4, f, *size, generator=rng()), sd._learning_bytes(net)
    with torch.no_grad(), sd.CountBytes() as c:
        pipe(RED, latents=z, output_type="latent")
    scratch = 3 * c.largest
    pipe.tune(frames, RED, steps=1)  # the first run of anything is special
    for checkpointing in (False, True):
        if checkpointing:
            pipe.unet.enable_gradient_checkpointing()
        counted, seen = (
            sd.step_bytes(net, f, size, gradient_checkpointing=checkpointing, tokens=tokens),
            measured(lambda: pipe.tune(frames, RED, steps=2)),
        )
        assert 0.95 * counted < seen < counted + learns + scratch
    for at_once in (True, False):
        counted, seen = (
            sd.ask_bytes(net, f, size, 1 + at_once, tokens),
            measured(lambda: pipe(RED, latents=z, guide_at_once=at_once, output_type="latent")),
        )
        assert 0.95 * counted < seen < counted + scratch


def test_counting_knows_its_numbers():
    "Stable Diffusion's own sizes, in millions, from configs alone; 74.4 learn, as in the authors' network."
    nets = on_meta("sd15")

    def millions(net):
        return sum(p.numel() for p in net.parameters()) / 1e6

    assert [round(millions(n), 1) for n in nets.values()] == [909.1, 83.7, 123.1] and sd._learning_bytes(
        nets["unet"]
    ) == pytest.approx(74.4e6 * 16, rel=1e-3)
    assert millions(on_meta("sdxl")["text_encoder_2"]) == pytest.approx(693, abs=1)


def test_the_plan(folders, monkeypatch):
    "Smaller cards need more switches; what is said to fit needs no more than there is; and the frames that would fit do, by their own count."
    monkeypatch.setattr(sd, "CONTEXT", 0)
    pipe, last = load_base(folders["sd1"]), {"tune": 9, "sample": 9}
    need = {
        job: [sd._need(sd._Memory(pipe, (32, 32), torch.float32).phases(job, 6, **way)) / 1e9 for way in ways]
        for job, ways in sd.WAYS.items()
    }
    for job, gbs in need.items():
        assert gbs == sorted(gbs, reverse=True)
    for i in range(4):
        p = plan(pipe, 6, 32, 1.0001 * max(gbs[i] for gbs in need.values()), torch.float32)
        for job in sd.WAYS:
            assert p.need[job] <= p.gpu_gb and sd.WAYS[job].index(p.ways[job]) <= i
    p = plan(pipe, 6, 32, need["tune"][-1] * 0.6, torch.float32, jobs=("tune",))
    assert (
        p.ways["tune"] is None and 0 < p.most["tune"] < 6 and f"{p.most['tune']} frames would fit" in str(p)
    )
    with pytest.raises(ValueError, match="do not fit into"):
        p.apply(pipe, "cpu")
    assert not pipe.unet.is_gradient_checkpointing
    assert plan(pipe, p.most["tune"], 32, p.gpu_gb, torch.float32, jobs=("tune",)).ways["tune"] is not None
    assert plan(pipe, 6, 32, 1e-6, torch.float32, jobs=("tune",)).most == {"tune": 0}
    assert (
        plan(folders["sd1"], 6, 32, 1.0, torch.float32).need == plan(pipe, 6, 32, 1.0, torch.float32).need
    )  # configs are enough


def test_a_plan_is_carried_out(folders, monkeypatch):
    monkeypatch.setattr(sd, "CONTEXT", 0)
    pipe = ready(load_base(folders["sd1"]))
    phases = sd._Memory(pipe, (16, 16), torch.float32).phases
    p = plan(
        pipe,
        2,
        16,
        max(sd._need(phases(job, 2, **ways[2])) for job, ways in sd.WAYS.items()) * 1.0001e-9,
        torch.float32,
    )
    p.apply(pipe, "cpu")
    assert (
        pipe.unet.is_gradient_checkpointing == bool((p.ways["tune"] or {}).get("gradient_checkpointing"))
        and pipe.vae.use_slicing
    )
    assert len(pipe.tune(clip(), RED)) == 2 and pipe(
        BLUE, latents=pipe.invert(clip()), **p.how
    ).frames.shape == (1, 2, 16, 16, 3)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(frames=0), "must be positive"),
        (dict(gpu_gb=-1.0), "must be positive"),
        (dict(size=(30, 33)), "multiples of 2"),
    ],
)
def test_plans_that_make_no_sense(folders, wrong, says):
    with pytest.raises(ValueError, match=says):
        plan(folders["sd1"], **dict(frames=2, size=16) | wrong)


def test_half_precision_costs_norms_in_full(folders):
    "Under autocast a norm keeps its input in float32 also: the count knows."
    net = on_meta(folders["sd1"])["unet"]
    assert sd.step_bytes(net, 4, (16, 16), torch.float16) > 1.05 * sd.step_bytes(net, 4, (16, 16))
    assert sd.step_bytes(net, 4, (16, 16)) < 0.6 * sd.step_bytes(
        on_meta(folders["sd1"], torch.float32)["unet"], 4, (16, 16)
    )
