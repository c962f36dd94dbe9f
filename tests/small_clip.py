"A random CLIP in the format of PickScore's, small enough for tests."

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from tune_a_video_nbs.miniature import TOKENS, build_tokenizer


def save_small_clip(folder: Path) -> Path:
    "Save a CLIP with other widths in its two towers, an image size and a sharpness of its own."
    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = dict(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        hidden_act="gelu",
    )
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = CLIPImageProcessor(size=dict(shortest_edge=28), crop_size=dict(height=28, width=28))
    processor.save_pretrained(folder)
    return folder
