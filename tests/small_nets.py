"""Small networks in the shapes of SD 1.x, SD 2.x and SDXL, with random weights:

What holds for these is no accident of training.
"""

import torch
from diffusers import (
    AutoencoderKL,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tune_a_video_nbs.ldm import model_path

STABLE = dict(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
)  # Stable Diffusion's noise levels

TINY = dict(sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4)
SHAPES = {
    "sd1": TINY
    | dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
    ),  # a number of heads, whatever its name says
    "sd2": TINY
    | dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=[2, 4],
        use_linear_projection=True,
        upcast_attention=True,
    ),
    "sdxl": TINY
    | dict(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 3],
        attention_head_dim=[2, 4, 4],
        use_linear_projection=True,
        cross_attention_dim=48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 20,
    ),
}


def randomise(net, seed=0, only=""):
    """Weights of sensible size, and none at zero or one, where a mistake could hide; `only` those with
    this in their name."""
    g = torch.Generator().manual_seed(seed)
    for name, p in net.named_parameters():
        scale = 0.1 if p.ndim == 1 else p[0].numel() ** -0.5
        if only in name:
            p.data.copy_(
                scale * torch.randn(p.shape, generator=g) + ("norm" in name and name.endswith("weight"))
            )
    return net.eval()


def small_unet(shape="sd1", **changes):
    "The image network of one family: a key of `SHAPES`."
    return randomise(UNet2DConditionModel(**SHAPES[shape] | changes))


def conditions(net, b, generator):
    "What the network wants besides latents and timestep, for `b` clips, no two alike."
    text = torch.randn(b, 5, net.config.cross_attention_dim, generator=generator)
    if net.config.addition_embed_type != "text_time":
        return dict(encoder_hidden_states=text)
    pooled = net.config.projection_class_embeddings_input_dim - 6 * net.config.addition_time_embed_dim
    return dict(
        encoder_hidden_states=text,
        added_cond_kwargs=dict(
            text_embeds=torch.randn(b, pooled, generator=generator),
            time_ids=torch.randint(0, 64, (b, 6), generator=generator).float(),
        ),
    )


def only_clip(cond, i):
    "The conditions of clip `i` alone."
    return {k: only_clip(v, i) if isinstance(v, dict) else v[i : i + 1] for k, v in cond.items()}


def small_pipeline(folder, shape="sd1", scheduler=None, **unet):
    """A whole model folder as diffusers writes it: a small VAE and UNet with random weights, and the
    miniature's tokenizer and text encoder.
    The scheduler is Stable Diffusion's own if none is given, PNDM; `unet` changes the network."""
    text, tokenizer = (
        kind.from_pretrained(model_path("sprites"), subfolder=sub)
        for kind, sub in ((CLIPTextModel, "text_encoder"), (CLIPTokenizer, "tokenizer"))
    )
    vae = randomise(
        AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            mid_block_add_attention=False,
            scaling_factor=0.5,
        )
    )
    parts = dict(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=scheduler or PNDMScheduler(**STABLE, skip_prk_steps=True),
    )
    if shape == "sdxl":
        second = randomise(
            CLIPTextModelWithProjection(
                CLIPTextConfig(
                    **text.config.to_dict() | dict(hidden_size=48, intermediate_size=64, projection_dim=20)
                )
            )
        )
        net = small_unet(shape, cross_attention_dim=96 + 48, **unet)
        whole = StableDiffusionXLPipeline(
            **parts, unet=net, text_encoder_2=second, tokenizer_2=tokenizer, add_watermarker=False
        )
    else:
        whole = StableDiffusionPipeline(
            **parts,
            unet=small_unet(shape, cross_attention_dim=96, **unet),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    whole.save_pretrained(folder)
    return folder
