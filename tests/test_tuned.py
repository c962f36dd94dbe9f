"The file of what was learned: whole, the same bytes each time, for this image model and no other."

import json
import zlib

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file
from small_nets import SHAPES, small_unet
from small_tuning import Bomb, off, run, values
from test_tune import adapt

from tune_a_video_nbs.errors import InputError, MissingFileError
from tune_a_video_nbs.inflate import inflate
from tune_a_video_nbs.tune import trainable_names
from tune_a_video_nbs.tuned import (
    learned_names,
    load_tuned,
    restore,
    save_tuned,
    trainable_state,
    tuned_names,
)
from tune_a_video_nbs.weights import fingerprint, learned_modules


@pytest.mark.parametrize("shape", SHAPES)
def test_saved_and_loaded(shape, tmp_path):
    net = run(inflate(small_unet(shape)))
    path = save_tuned(net, tmp_path / "a.safetensors", caption="a çat", number=3)
    learned = sum(net.get_parameter(n).numel() for n in trainable_names(net))
    assert 4 * learned < path.stat().st_size < 4 * learned + 20_000
    other = inflate(small_unet(shape))
    about = load_tuned(other, path)
    assert about["caption"] == "a çat" and about["number"] == "3" and off(net, other) == 0
    half = inflate(small_unet(shape)).bfloat16()
    load_tuned(half, path)  # the same model in another precision
    assert off(half, net) < 0.02


@pytest.mark.parametrize("parts", [("",), "conv_in", ("attn_temp", "attn1.to_k"), ("attn1.to_q",)])
def test_whatever_learned_is_saved(parts, tmp_path):
    "Not only what learns by default: or the rest is lost, and nobody says so."
    net = run(trainable_modules=parts)
    path = save_tuned(net, tmp_path / "a.safetensors")
    assert set(load_file(path)) == set(trainable_names(net, parts)) == set(tuned_names(path))
    other = inflate(small_unet())
    load_tuned(other, path)
    assert off(net, other) == 0
    again = save_tuned(other, tmp_path / "b.safetensors")  # one that was loaded is kept whole, too
    assert set(load_file(again)) >= set(load_file(path))


def test_two_runs_are_both_saved(tmp_path):
    net = run(trainable_modules="conv_in")
    run(net, trainable_modules="attn_temp")
    path = save_tuned(net, tmp_path / "a.safetensors")
    assert set(load_file(path)) == set(trainable_names(net, ("conv_in", "attn_temp")))


def test_names_may_be_given(tmp_path):
    net = run()
    path = save_tuned(net, tmp_path / "a.safetensors", names=["conv_in.bias"], caption="c")
    assert list(load_file(path)) == ["conv_in.bias"]
    for wrong in (["conv_in"], ["no.such.weight"], []):
        with pytest.raises(InputError, match="no parameter named"):
            save_tuned(net, tmp_path / "b.safetensors", names=wrong)
    assert learned_names(inflate(small_unet())) == trainable_names(net)  # by default, what learns by default


def test_equal_weights_are_equal_bytes(tmp_path):
    "safetensors writes metadata in whatever order its hash table has."
    net = run()
    facts = dict(zebra=1, caption="c", author="me", family=dict(b=1, a=2))
    files = [save_tuned(net, tmp_path / f"{i}", **facts).read_bytes() for i in range(6)]
    assert len(set(files)) == 1
    with safe_open(tmp_path / "0", "pt") as file:
        metadata = file.metadata()
    assert {k: metadata[k] for k in ("zebra", "caption")} == dict(zebra="1", caption="c")
    start = 8 + int.from_bytes(files[0][:8], "little")
    assert start % 8 == 0 and list(json.loads(files[0][8:start])["__metadata__"]) == sorted(metadata)


@pytest.mark.parametrize("kind", ["compiled", "parallel", "adapted", "fused"])
def test_names_in_files_are_plain(kind, tmp_path):
    "A file of a wrapped network fits any other, and the other way round."
    net = run()
    plain = save_tuned(net, tmp_path / "plain.safetensors")
    wrap = dict(compiled=torch.compile, parallel=torch.nn.DataParallel, adapted=adapt, fused=fuse)[kind]
    wrapped = wrap(inflate(small_unet()))
    load_tuned(wrapped, plain)
    path = save_tuned(wrapped, tmp_path / "wrapped.safetensors")
    assert path.read_bytes() == plain.read_bytes()
    other = inflate(small_unet())
    load_tuned(other, path)
    assert off(net, other) == 0


def fuse(net):
    net.fuse_qkv_projections()
    return net


def old_file(net, path, names, prefix="", **changes):
    "A file as it was written before names were plain: metadata in any order."
    weights = {prefix + n: net.get_parameter(n).detach().clone() for n in names}
    crc = 0
    for n in sorted(weights):
        crc = zlib.crc32(weights[n].view(torch.uint8).numpy(), zlib.crc32(n.encode(), crc))
    facts = dict(
        format="tune_a_video_nbs",
        frame_norm="per_frame",
        frozen=json.dumps(fingerprint(net, names)),
        checksum=f"{crc:08x}",
        caption="c",
    )
    save_file(weights, path, {k: v for k, v in (facts | changes).items() if v is not None})
    return path


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module."])
def test_files_of_before_are_read(prefix, tmp_path):
    net = run()
    path = old_file(net, tmp_path / "a.safetensors", trainable_names(net), prefix)
    other = inflate(small_unet())
    assert load_tuned(other, path)["caption"] == "c" and off(net, other) == 0


def test_files_of_others_are_refused(tmp_path):
    "A whole network has all the names, and would take the place of the image model."
    net = inflate(small_unet())
    before = values(net)
    whole = old_file(run(), tmp_path / "a.safetensors", list(before), format=None)
    lora = tmp_path / "lora.safetensors"
    save_file({"lora_unet_mid.alpha": torch.ones(1)}, lora)
    for path in (whole, lora):
        with pytest.raises(InputError, match="was not written by save_tuned"):
            load_tuned(net, path)
    assert all(p.equal(before[n]) for n, p in net.named_parameters())


def test_a_file_of_another_model(tmp_path):
    path = save_tuned(run(), tmp_path / "a.safetensors")
    for net, message in [
        (inflate(small_unet("sdxl")), "does not fit"),
        (inflate(small_unet(), "shared"), "frame_norm='per_frame'"),
    ]:
        before = values(net)
        with pytest.raises(InputError, match=message):
            load_tuned(net, path)
        assert all(p.equal(before[n]) for n, p in net.named_parameters()) and learned_modules(net) == ()
    louder = small_unet()
    for p in louder.parameters():
        p.data.mul_(1.05)
    with pytest.warns(UserWarning, match="another image model") as caught:
        load_tuned(inflate(louder), path)
    assert caught[0].filename == __file__  # it points at who called
    positions = save_tuned(run(inflate(small_unet(), frame_positions=True)), tmp_path / "p.safetensors")
    with pytest.raises(InputError, match="add_frame_positions"):
        load_tuned(inflate(small_unet()), positions)


def test_damaged_files(tmp_path):
    net = run()
    whole = bytearray(save_tuned(net, tmp_path / "a.safetensors").read_bytes())
    other = inflate(small_unet())
    before = values(other)
    flipped = whole.copy()
    flipped[-50] ^= 1
    damages = [(whole[:-1], "no whole"), (whole[:5], "no whole"), (b"", "no whole"), (flipped, "checksum")]
    for data, message in damages:
        (tmp_path / "b.safetensors").write_bytes(data)
        with pytest.raises(InputError, match=message):
            load_tuned(other, tmp_path / "b.safetensors")
    net.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        load_tuned(other, save_tuned(net, tmp_path / "n.safetensors"))
    with pytest.raises(MissingFileError):
        load_tuned(other, tmp_path / "none.safetensors")
    assert all(p.equal(before[n]) for n, p in other.named_parameters())


def test_code_in_a_file_is_never_run(tmp_path):
    mark = tmp_path / "was-here"
    torch.save(dict(params={}, bomb=Bomb(mark)), tmp_path / "bomb.safetensors")
    with pytest.raises(InputError, match="no whole safetensors file"):
        load_tuned(inflate(small_unet()), tmp_path / "bomb.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back(dtype):
    net = inflate(small_unet()).to(dtype)
    before = values(net)
    state = trainable_state(net)
    run(net)
    assert not all(p.equal(before[n]) for n, p in net.named_parameters())
    restore(torch.compile(net), state)
    assert all(p.equal(before[n]) for n, p in net.named_parameters())
    assert list(trainable_state(net, ["conv_in.bias"])) == ["conv_in.bias"]
    with pytest.raises(InputError, match="no parameter named"):
        trainable_state(net, ["conv_in"])
