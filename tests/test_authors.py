"Folders of the authors' code: opened, written, refused; and that nothing in their pickles is ever run."

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet3DConditionModel
from safetensors.torch import load_file, save_file
from small_nets import STABLE, randomise, small_pipeline, small_unet
from transformers import CLIPTextConfig, CLIPTextModel

from tune_a_video_nbs.authors import AUTHORS, load_video_unet, rename_blocks, save_for_authors
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.pipeline import TuneAVideoPipeline

HERE = Path(__file__).parent / "parity"
FACTS = json.loads((HERE / "authors.json").read_text())
DATA = load_file(HERE / "authors.safetensors")
RED, BLUE = "a red star is bouncing on the grass", "a blue heart is bouncing in the snow"


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def predict(net, x, cond, t):
    return net(x, t, **cond).sample


def test_names_of_blocks():
    assert rename_blocks(["CrossAttnDownBlock3D", ("DownBlock3D",)], "3D", "2D") == [
        "CrossAttnDownBlock2D",
        ["DownBlock2D"],
    ]
    assert rename_blocks(None, "3D", "2D") is None


# ---- their network


THEIRS = dict(  # as their code writes it; what their oldest folders leave out is `LEFT_OUT`
    _class_name="UNet3DConditionModel",
    _diffusers_version="0.11.1",
    _name_or_path="./checkpoints/small",
    act_fn="silu",
    attention_head_dim=8,
    block_out_channels=[32, 64],
    center_input_sample=False,
    class_embed_type=None,
    cross_attention_dim=32,
    down_block_types=["CrossAttnDownBlock3D", "DownBlock3D"],
    downsample_padding=1,
    dual_cross_attention=False,
    flip_sin_to_cos=True,
    freq_shift=0,
    in_channels=4,
    layers_per_block=1,
    mid_block_scale_factor=1,
    mid_block_type="UNetMidBlock3DCrossAttn",
    norm_eps=1e-5,
    norm_num_groups=8,
    num_class_embeds=None,
    only_cross_attention=False,
    out_channels=4,
    resnet_time_scale_shift="default",
    sample_size=16,
    up_block_types=["UpBlock3D", "CrossAttnUpBlock3D"],
    upcast_attention=False,
    use_linear_projection=False,
)
LEFT_OUT = (
    "mid_block_type",
    "class_embed_type",
    "dual_cross_attention",
    "num_class_embeds",
    "only_cross_attention",
    "resnet_time_scale_shift",
    "upcast_attention",
    "use_linear_projection",
)


@pytest.fixture
def authors():
    "Their network's weights under their names, and what it computed."
    facts, data = json.loads((HERE / "authors.json").read_text()), load_file(HERE / "authors.safetensors")

    def part(prefix):
        return {
            k.removeprefix(prefix + "."): v.contiguous()
            for k, v in data.items()
            if k.startswith(prefix + ".")
        }

    return part("unet"), part("forward.b2f3"), facts["noise_floor"]["b2f3"]


def write(folder, config, weights, kind):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(weights, folder / "diffusion_pytorch_model.bin")
    else:
        save_file(weights, folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("left_out", [(), LEFT_OUT], ids=["full", "sparse"])
def test_the_authors_folder(authors, kind, left_out, tmp_path):
    weights, case, floor = authors
    write(tmp_path / "unet", {k: v for k, v in THEIRS.items() if k not in left_out}, weights, kind)
    net = load_video_unet(tmp_path, subfolder="unet")
    assert net.config.frame_norm == "shared" and net.config.mid_block_type == "UNetMidBlock2DCrossAttn"

    def off(net):
        return (
            (
                predict(
                    net,
                    case["latents"],
                    dict(encoder_hidden_states=case["encoder_hidden_states"]),
                    case["timestep"],
                )
                - case["output"]
            )
            .abs()
            .max()
        )

    assert off(net) <= 4 * floor
    assert (
        off(load_video_unet(tmp_path, subfolder="unet", frame_norm="per_frame")) > 1e-2
    )  # asked for, and another network
    net.save_pretrained(tmp_path / "ours")  # from here on a folder of ours
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["_class_name"] == "VideoUNet"
    assert off(load_video_unet(tmp_path / "ours")) <= 4 * floor


def test_an_incomplete_or_foreign_folder_is_refused(authors, tmp_path):
    weights, _, _ = authors
    write(
        tmp_path / "part", THEIRS, {k: v for k, v in weights.items() if "mid_block" not in k}, "safetensors"
    )
    with pytest.raises(ValueError, match="missing_keys, such as mid_block"):
        load_video_unet(tmp_path / "part")
    write(tmp_path / "more", THEIRS, weights | {"transformer_in.weight": torch.zeros(1)}, "safetensors")
    with pytest.raises(ValueError, match="1 unexpected_keys, such as transformer_in"):
        load_video_unet(tmp_path / "more")
    theirs = UNet3DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        layers_per_block=1,
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    theirs.save_pretrained(tmp_path / "diffusers")  # another network under the very same class name
    with pytest.raises(ValueError, match="diffusers has another of that name"):
        load_video_unet(tmp_path / "diffusers")
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    with pytest.raises(ValueError, match="but AutoencoderKL"):
        load_video_unet(tmp_path / "vae")


@pytest.mark.parametrize("of", ["ours", "image", "authors"])
def test_half_filled_networks_are_refused(of, authors, tmp_path):
    net = small_unet() if of == "image" else inflate(small_unet())
    net.save_pretrained(tmp_path)
    if of == "authors":
        (tmp_path / "config.json").write_text(json.dumps(THEIRS))
        weights = authors[0]
    else:
        weights = net.state_dict()
    save_file(
        {k: v for k, v in weights.items() if k != "conv_in.bias"},
        tmp_path / "diffusion_pytorch_model.safetensors",
    )
    with pytest.raises(ValueError, match="1 missing_keys, such as conv_in.bias"):
        load_video_unet(tmp_path)


class Bomb:
    "What a pickle can hold: a call, made by whoever reads it."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("of", ["authors", "image"])
def test_code_in_a_pickle_is_never_run(authors, of, tmp_path):
    config = THEIRS if of == "authors" else dict(small_unet().config, _class_name="UNet2DConditionModel")
    mark = tmp_path / "was-here"
    write(tmp_path / "unet", config, authors[0] | {"bomb": Bomb(mark)}, "bin")
    with pytest.raises(ValueError, match="nothing in them was run"):
        load_video_unet(tmp_path / "unet")
    assert not mark.exists()
    with open(tmp_path / "bomb.pkl", "wb") as f:
        pickle.dump(Bomb(mark), f)
    pickle.loads((tmp_path / "bomb.pkl").read_bytes())
    assert mark.exists()  # the bomb is a live one


def test_truncated_weights(authors, tmp_path):
    weights, _, _ = authors
    for kind in ("bin", "safetensors"):
        write(tmp_path / kind, THEIRS, weights, kind)
        path = tmp_path / kind / f"diffusion_pytorch_model.{kind}"
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises((OSError, ValueError), match=kind):
            load_video_unet(tmp_path / kind)


# ---- their pipeline


def clip(f=2):
    return torch.randint(256, (f, 16, 16, 3), generator=rng(), dtype=torch.uint8).numpy()


def ready(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe.update_settings(num_inference_steps=2, guidance_scale=3.0, tune_steps=2)
    return pipe


def opened(folder, **how):
    return ready(TuneAVideoPipeline.from_pretrained(folder, **how))


def draw(pipe):
    return pipe(BLUE, num_frames=2, generator=rng(), output_type="latent").frames


def whole_method(pipe):
    "Tune, invert, edit: what comes out is a clip, and the tuning has changed what it is."
    before = draw(pipe)
    losses = pipe.tune(clip(), RED, lr=1e-2)
    out = pipe(BLUE, latents=pipe.invert(clip())).frames
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert out.shape == (1, 2, 16, 16, 3)
    assert not draw(pipe).equal(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    made = tmp_path_factory.mktemp("models")
    velocity = PNDMScheduler(**STABLE, prediction_type="v_prediction")
    return {
        "sd1": small_pipeline(made / "sd1"),
        "v": small_pipeline(made / "v", "sd2", velocity),
        "sdxl": small_pipeline(made / "sdxl", "sdxl"),
    }


OLD_VAE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
NEW_IN_VAE = (  # what configs of their time do not have
    "scaling_factor",
    "force_upcast",
    "mid_block_add_attention",
    "latents_mean",
    "latents_std",
    "shift_factor",
    "use_quant_conv",
    "use_post_quant_conv",
)


def authors_folder(folder, into, bomb=None, sparse=False):
    "What their training script leaves: 3-D names, .bin everywhere, old tokenizer files, an unknown module."
    config = {k: v for k, v in FACTS["unet_config"].items() if not (sparse and k in LEFT_OUT)}
    config = json.loads(json.dumps(config).replace("2D", "3D")) | dict(_class_name=AUTHORS)
    if not sparse:
        config["mid_block_type"] = "UNetMidBlock3DCrossAttn"
    unet = {k.removeprefix("unet."): v for k, v in DATA.items() if k.startswith("unet.")}
    save_old(into / "unet", unet, config, bomb == "unet")

    about = AutoencoderKL.load_config(folder, subfolder="vae") | dict(mid_block_add_attention=True)
    vae = randomise(AutoencoderKL.from_config(about))
    renamed = {old_vae_name(k): v for k, v in vae.state_dict().items()}
    about = {k: v for k, v in vae.config.items() if k not in NEW_IN_VAE}
    save_old(into / "vae", renamed, about, bomb == "vae")

    about = CLIPTextConfig.from_pretrained(folder, subfolder="text_encoder").to_dict()
    about |= dict(hidden_size=32, intermediate_size=48, num_attention_heads=4)
    text = randomise(CLIPTextModel(CLIPTextConfig(**about)))
    words = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in text.state_dict().items()}
    words["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    about = text.config.to_dict() | dict(architectures=["CLIPTextModel"])
    save_old(into / "text_encoder", words, about, bomb == "text_encoder", "pytorch_model.bin")

    save_old_tokenizer(folder / "tokenizer", into / "tokenizer")
    scheduler = {k: v for k, v in FACTS["ddim"]["checkpoint_scheduler_config"].items() if k != "clip_sample"}
    (into / "scheduler").mkdir()
    (into / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = dict(
        _class_name="TuneAVideoPipeline",
        _diffusers_version="0.11.1",
        scheduler=["diffusers", "PNDMScheduler"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
        unet=["models.unet", AUTHORS],
        vae=["diffusers", "AutoencoderKL"],
    )
    (into / "model_index.json").write_text(json.dumps(index))
    return into


def save_old(folder, weights, config, bomb, file="diffusion_pytorch_model.bin"):
    folder.mkdir(parents=True)
    if bomb:
        weights = weights | {"bomb": Bomb(folder.parent / "was-here")}
    torch.save(weights, folder / file)
    (folder / "config.json").write_text(json.dumps(config, default=list))


def old_vae_name(name):
    for new, old in OLD_VAE.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def save_old_tokenizer(folder, into):
    into.mkdir()
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (into / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (into / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    shutil.copy(folder / "tokenizer_config.json", into)


@pytest.mark.parametrize("sparse", [False, True], ids=["full config", "keys missing"])
def test_their_pipeline_computes_what_their_code_computed(folders, tmp_path, sparse):
    "Opened unchanged: one question, a whole inversion, a whole guided sampling."
    folder = authors_folder(folders["sd1"], tmp_path / "surfing", sparse=sparse)
    pipe = opened(folder)
    names = ("latents", "timestep", "encoder_hidden_states")
    with torch.no_grad():
        predicted = pipe.unet(*[DATA[f"forward.b2f3.{name}"] for name in names]).sample
    assert (predicted - DATA["forward.b2f3.output"]).abs().max() <= 4 * FACTS["noise_floor"]["b2f3"]
    z = pipe.invert(
        latents=DATA["ddim.inv.x0"],
        prompt_embeds=DATA["ddim.inv.encoder_hidden_states"],
        num_inference_steps=FACTS["ddim"]["steps"],
    )
    assert (z - DATA["ddim.inv.latents"][-1]).abs().max() < 1e-3 * z.std()
    empty, words = DATA["ddim.cfg.encoder_hidden_states_uncond_then_cond"].split(1)
    out = pipe(
        latents=DATA["ddim.cfg.init_latents"],
        prompt_embeds=words,
        negative_prompt_embeds=empty,
        num_inference_steps=FACTS["ddim"]["steps"],
        guidance_scale=FACTS["ddim"]["guidance_scale"],
        output_type="latent",
    ).frames
    assert (out - DATA["ddim.cfg.latents_after_each_step"][-1]).abs().max() < 1e-3 * out.std()
    whole_method(pipe)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_bomb_in_their_pipeline(folders, tmp_path, part):
    folder = authors_folder(folders["sd1"], tmp_path / "evil", bomb=part)
    with pytest.raises(InputError):
        TuneAVideoPipeline.from_pretrained(folder)
    assert not (folder / "was-here").exists()
    with zipfile.ZipFile(next((folder / part).glob("*.bin"))) as archive:
        held = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"touch" in held  # the bomb was there


@pytest.mark.parametrize("shape", ["sd1", "v"])
def test_there_and_back(folders, tmp_path, shape):
    "Tuned, written in their layout, read again: the same clip. And under their names, and no others."
    pipe = opened(folders[shape], frame_norm="shared")
    randomise(pipe.unet, only="attn_temp.")
    folder = save_for_authors(pipe, tmp_path / "theirs")
    assert draw(opened(folder)).equal(draw(pipe))
    assert not list(folder.rglob("*.safetensors"))
    config = json.loads((folder / "unet" / "config.json").read_text())
    assert config["_class_name"] == AUTHORS
    assert config["down_block_types"][0] == "CrossAttnDownBlock3D"
    assert config["mid_block_type"] == "UNetMidBlock3DCrossAttn"
    # their network takes no key that it does not know
    assert set(config) <= {*FACTS["unet_config"], "mid_block_type", "_class_name", "_diffusers_version"}
    assert (folder / "tokenizer" / "vocab.json").is_file() and (folder / "tokenizer" / "merges.txt").is_file()


def test_their_names(folders, tmp_path):
    "The authors' own network, through our pipeline and out again: every name and every number as it was."
    pipe = opened(authors_folder(folders["sd1"], tmp_path / "from"))
    save_for_authors(pipe, tmp_path / "to")
    for part in ("unet", "vae", "text_encoder"):
        a, b = (
            torch.load(next((tmp_path / end / part).glob("*.bin")), weights_only=True)
            for end in ("from", "to")
        )
        a.pop("text_model.embeddings.position_ids", None)
        assert set(a) == set(b) and all(v.equal(b[k]) for k, v in a.items())


def test_what_their_network_cannot_be(folders, tmp_path):
    with pytest.raises(InputError, match="frame_norm='shared'"):
        save_for_authors(opened(folders["sd1"]), tmp_path / "x")
    with pytest.raises(InputError, match="knows no frame_positions"):
        save_for_authors(opened(folders["sd1"], frame_norm="shared", frame_positions=True), tmp_path / "x")
    with pytest.raises(InputError, match="knows no"):
        save_for_authors(opened(folders["sdxl"], frame_norm="shared"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
