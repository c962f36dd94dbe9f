"""A model folder as the one file that Stable Diffusion's original code would have saved.

diffusers reads such files and writes none, so the names of the original code are spelled out here.
"""

import re
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from small_nets import randomise
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
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


class OriginalNames:
    "Collects weights under names of the original code."

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def add(self, prefix: str, layer: nn.Module) -> None:
        for name, weight in layer.state_dict().items():
            self.weights[f"{prefix}.{name}"] = weight

    def add_resnet(self, prefix: str, resnet: nn.Module) -> None:
        for name, weight in resnet.state_dict().items():
            layer, kind = name.rsplit(".", 1)
            self.weights[f"{prefix}.{RESNET[layer]}.{kind}"] = weight


def unet_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    "Return a UNet's weights: the original code numbers all blocks in one row."
    names = OriginalNames()
    names.add("time_embed.0", unet.time_embedding.linear_1)
    names.add("time_embed.2", unet.time_embedding.linear_2)
    names.add("input_blocks.0.0", unet.conv_in)
    names.add("out.0", unet.conv_norm_out)
    names.add("out.2", unet.conv_out)
    if unet.config.addition_embed_type:
        names.add("label_emb.0.0", unet.add_embedding.linear_1)
        names.add("label_emb.0.2", unet.add_embedding.linear_2)
    number = 1
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            names.add_resnet(f"input_blocks.{number}.0", resnet)
            if hasattr(block, "attentions"):
                names.add(f"input_blocks.{number}.1", block.attentions[i])
            number += 1
        for downsampler in block.downsamplers or ():
            names.add(f"input_blocks.{number}.0.op", downsampler.conv)
            number += 1
    names.add_resnet("middle_block.0", unet.mid_block.resnets[0])
    names.add("middle_block.1", unet.mid_block.attentions[0])
    names.add_resnet("middle_block.2", unet.mid_block.resnets[1])
    number = 0
    for block in unet.up_blocks:
        for i, resnet in enumerate(block.resnets):
            names.add_resnet(f"output_blocks.{number}.0", resnet)
            place = 1
            if hasattr(block, "attentions"):
                names.add(f"output_blocks.{number}.1", block.attentions[i])
                place = 2
            if i == len(block.resnets) - 1:
                for upsampler in block.upsamplers or ():
                    names.add(f"output_blocks.{number}.{place}.conv", upsampler.conv)
            number += 1
    return {f"model.diffusion_model.{name}": weight for name, weight in names.weights.items()}


def vae_weights(vae: AutoencoderKL) -> dict[str, Tensor]:
    "Return a VAE's weights: the original code counts upwards in the decoder, and attends by convolutions."
    last = len(vae.config.block_out_channels) - 1
    weights = {}
    for name, weight in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        if "mid_block.attentions.0" in name:
            for ours, theirs in VAE_ATTENTION.items():
                name = name.replace(f"0.{ours}.", f"0.{theirs}.")
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            if weight.ndim == 2:
                weight = weight[:, :, None, None]  # a convolution of one pixel, then
        name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        weights[f"first_stage_model.{name}"] = weight.contiguous()
    return weights


def clip_weights(text_encoder: nn.Module) -> dict[str, Tensor]:
    "Return the weights of CLIP's own text encoder, under the names that transformers had then."
    weights = {"transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    for name, weight in text_encoder.state_dict().items():
        weights[f"transformer.text_model.{name.removeprefix('text_model.')}"] = weight
    return weights


def openclip_weights(text_encoder: nn.Module) -> dict[str, Tensor]:
    "Return the weights of an OpenCLIP: queries, keys and values in one matrix, the projection turned."
    own = {name.removeprefix("text_model."): weight for name, weight in text_encoder.state_dict().items()}
    weights = {}
    for name, weight in own.items():
        if name == "text_projection.weight":
            weights["text_projection"] = weight.T.contiguous()
            continue
        if re.search("[kv]_proj", name):
            continue
        if "q_proj" in name:
            weight = torch.cat([own[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("self_attn.q_proj.", "attn.in_proj_")
        for ours, theirs in OPENCLIP.items():
            name = name.replace(ours, theirs)
        weights[name] = weight
    return weights


def text_weights(folder: Path, shape: str) -> dict[str, Tensor]:
    "Return the text encoders' weights under the names of each family's files."
    first = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    if shape == "sd1":
        return {f"cond_stage_model.{name}": weight for name, weight in clip_weights(first).items()}
    if shape == "sd2":
        weights = openclip_weights(first)
        # SD 2.x reads the last layer but one; its file has the last and a projection all the same.
        weights["text_projection"] = torch.ones(96, 96)
        for name in list(weights):
            if "resblocks.0." in name:
                weights[name.replace("resblocks.0.", "resblocks.23.")] = torch.ones_like(weights[name])
        return {f"cond_stage_model.model.{name}": weight for name, weight in weights.items()}
    second = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
    weights = {f"conditioner.embedders.0.{name}": weight for name, weight in clip_weights(first).items()}
    for name, weight in openclip_weights(second).items():
        weights[f"conditioner.embedders.1.model.{name}"] = weight
    return weights


def save_one_file(
    folder: Path, path: Path, shape: str = "sd1", extra: dict[str, Tensor] | None = None
) -> Path:
    "Write a whole model folder as one file; `extra` tensors stand beside the weights."
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    save_file(unet_weights(unet) | vae_weights(vae) | text_weights(folder, shape) | (extra or {}), path)
    return path


def with_vae_attention(folder: Path, into: Path) -> Path:
    "Copy a model, but with a VAE that attends, as Stable Diffusion's does."
    shutil.copytree(folder, into)
    config = AutoencoderKL.load_config(folder, subfolder="vae") | {"mid_block_add_attention": True}
    randomise(AutoencoderKL.from_config(config)).save_pretrained(into / "vae")
    return into


def only_configs(folder: Path, into: Path) -> Path:
    "Copy what a single file needs beside it: everything but weights."
    shutil.copytree(folder, into, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    return into
