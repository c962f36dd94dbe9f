"Our video network against numbers computed by the authors' code, on the same small random weights."
import json
from pathlib import Path
import pytest, torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from tune_a_video_nbs.inflate import VideoUNet, inflate
from tune_a_video_nbs.tune import trainable_names

HERE = Path(__file__).parent/"parity"
FACTS = json.loads((HERE/"authors.json").read_text())
DATA = load_file(HERE/"authors.safetensors")
part = lambda prefix: {k.removeprefix(prefix + "."): v for k, v in DATA.items() if k.startswith(prefix + ".")}

@pytest.fixture
def unet():
    torch.manual_seed(0)
    image = UNet2DConditionModel.from_config(FACTS["unet_config"])
    net = inflate(image, frame_norm="shared")
    assert sorted(set(net.state_dict()) - set(image.state_dict())) == sorted(FACTS["temporal_keys"])
    net.load_state_dict(part("unet"), strict=True)     # the authors' keys are ours
    return net

@pytest.mark.parametrize("case", ["f1", "f2", "f8", "b2f3"])
def test_forward(unet, case):
    x = part(f"forward.{case}")
    with torch.no_grad(): out = unet(x["latents"], x["timestep"], x["encoder_hidden_states"]).sample
    assert (out - x["output"]).abs().max() <= 4*FACTS["noise_floor"][case]

def test_per_frame_norms_are_another_network(unet):
    "The comparison can fail: with statistics per frame the output is far from the authors'."
    other = inflate(UNet2DConditionModel.from_config(FACTS["unet_config"]), frame_norm="per_frame")
    other.load_state_dict(part("unet"), strict=True)
    x = part("forward.f8")
    with torch.no_grad(): out = other(x["latents"], x["timestep"], x["encoder_hidden_states"]).sample
    assert (out - x["output"]).abs().max() > 1e-2

@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_step(unet, checkpointing):
    "The loss, and the norm of every gradient: with checkpointing too, where the authors' own down blocks get none."
    x, names = part("train"), trainable_names(unet)
    assert sorted(names) == sorted(FACTS["grad_norms"])
    unet.requires_grad_(False).train()
    if checkpointing: unet.enable_gradient_checkpointing()
    learning = {n: p.requires_grad_() for n, p in unet.named_parameters() if n in names}
    loss = torch.nn.functional.mse_loss(unet(x["noisy_latents"], x["timestep"], x["encoder_hidden_states"]).sample, x["target"])
    loss.backward()
    assert abs(loss.item() - FACTS["loss"]) <= 1e-6*FACTS["loss"]
    for n, p in learning.items():
        assert p.grad.norm().item() == pytest.approx(FACTS["grad_norms"][n], rel=4*FACTS["grad_norm_noise"]), n

def test_saved_norms_are_not_silently_another(unet, tmp_path):
    "A saved video network says which norms it has; asking for others is an error, not a silent choice."
    unet.save_pretrained(tmp_path)
    assert VideoUNet.from_pretrained(tmp_path, frame_norm="shared").config.frame_norm == "shared"
    with pytest.raises(ValueError, match="was saved with frame_norm='shared'"): VideoUNet.from_pretrained(tmp_path, frame_norm="per_frame")
