"The world: drawing, reading back, scores, jobs; and the agreement that the rest of the book asks it by."

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.oracle import (
    LOST,
    flicker,
    motion_error,
    psnr,
    read_stills,
    sameness,
    score_edit,
)
from tune_a_video_nbs.sprites import clip_scenes, draw_clip, draw_still, random_stills
from tune_a_video_nbs.world import WORLDS, Job, Stills, World, get_world, world_of

RED = "a red star is bouncing on a night sky"
BLUE = "a blue heart is bouncing on a night sky"


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def fingerprint(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


@pytest.fixture(scope="module")
def world():
    return get_world("sprites")


# Drawing: what a generator drew once it draws for good.


@pytest.mark.parametrize("caption", [RED, "a small orange square is sliding to the left on the beach"])
def test_one_generator_draws_one_clip(caption, seed=1):
    once, again = draw_clip(caption, 8, seeded(seed)), draw_clip(caption, 8, seeded(seed))
    assert once.dtype == np.uint8 and once.shape == (8, 64, 64, 3)
    assert fingerprint(once) == fingerprint(again)
    assert fingerprint(once) != fingerprint(draw_clip(caption, 8, seeded(seed + 1)))


def test_the_first_still_is_the_one_the_shipped_weights_saw():
    _, captions = random_stills(500, seeded(0))
    assert captions[0] == "a pink heart and a yellow moon on the beach"


def test_words_do_not_move_the_sprite():
    assert torch.equal(clip_scenes(RED, 8).centre, clip_scenes(BLUE, 8).centre)


def test_importing_the_world_computes_nothing():
    "A table at import time would be paid for by every command of the terminal."
    code = (
        "from tune_a_video_nbs import drawing, oracle, sprites, world\n"
        "tables = (drawing._distance_table, drawing.palette, drawing.backgrounds, oracle._templates)\n"
        "assert not any(table.cache_info().currsize for table in tables)\n"
        "import sys\n"
        "assert 'tune_a_video_nbs.sprite_world' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


# The oracle takes what comes.


def as_pil(clip):
    return [Image.fromarray(frame) for frame in clip]


FORMS = {
    "uint8": lambda clip: clip,
    "np": lambda clip: clip.astype(np.float32) / 255,
    "half": lambda clip: (clip / 255).astype(np.float16),
    "torch": lambda clip: torch.as_tensor(clip).float() / 255,
    "pil": as_pil,
}


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_same_for_bytes_and_shares_of_light(form):
    take = FORMS[form]
    source, exact = draw_clip(RED, 4), draw_clip(BLUE, 4)
    assert score_edit(take(exact), BLUE, take(source), RED, take(exact)) == score_edit(
        exact, BLUE, source, RED, exact
    )
    assert psnr(take(source), take(exact)) == psnr(source, exact)
    assert motion_error(take(exact), take(source)) == motion_error(exact, source)
    assert sameness(take(exact)) == 1 and flicker(take(exact)) == flicker(exact)
    assert read_stills(take(exact)).shape.tolist() == read_stills(exact).shape.tolist()


def test_psnr_refuses_unlike_shapes():
    with pytest.raises(InputError, match=r"\(2, 8, 8, 3\) and \(3, 8, 8, 3\)"):
        psnr(np.zeros((2, 8, 8, 3), np.uint8), np.zeros((3, 8, 8, 3), np.uint8))


@pytest.mark.parametrize("shape", [(2, 8, 10, 3), (2, 9, 9, 3), (8, 8, 3)])
def test_the_oracle_reads_square_pictures_of_an_even_side(shape):
    with pytest.raises(InputError, match="even side"):
        read_stills(np.zeros(shape, np.uint8))


def test_a_lost_sprite_is_charged():
    source = draw_clip(RED, 4)
    gone = np.repeat(draw_clip(RED, 4)[:1] * 0, 4, 0)
    scores = score_edit(gone, RED, source, RED)
    assert scores["found"] == 0 and scores["edited"] is None
    assert scores["path_error"] == pytest.approx(LOST * 64)


@pytest.mark.parametrize("name", ["read_stills", "score_edit", "coverage", "backgrounds"])
def test_names_can_also_be_imported_from_sprites(name):
    from tune_a_video_nbs import drawing, oracle, sprites

    home = oracle if hasattr(oracle, name) else drawing
    assert getattr(sprites, name) is getattr(home, name)


def test_sprites_has_no_other_names():
    from tune_a_video_nbs import sprites

    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sprites.nonsense


# The world by its agreement.


def test_the_world_keeps_the_agreement(world):
    for member in World.__annotations__ | {k: v for k, v in vars(World).items() if not k.startswith("_")}:
        assert hasattr(world, member), member


def test_a_world_is_found_by_name_or_stands_for_itself(world):
    assert get_world() is world and get_world(world) is world
    with pytest.raises(InputError, match="no world called 'muppets': known are 'sprites', 'puppets'"):
        get_world("muppets")


def test_another_world_is_a_line(monkeypatch):
    monkeypatch.setitem(WORLDS, "mine", f"{__name__}:Mine")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    assert get_world("mine").name == "mine"
    assert Job("x", {}, 0, "mine").draw().shape == (8, 4, 4, 3)


class Mine:
    name = "mine"

    def draw(self, caption, num_frames=8, generator=None):
        return np.zeros((num_frames, 4, 4, 3), np.uint8)


class Model:
    def __init__(self, **config):
        self.config = type("Config", (), config)


def test_a_model_names_its_world(world):
    assert world_of(Model(world="sprites")) is world
    assert world_of(Model(world=None)) is None and world_of(Model()) is None and world_of(object()) is None


def test_the_shipped_model_names_its_world():
    from tune_a_video_nbs.ldm import model_path

    assert json.loads((Path(model_path("sprites")) / "settings.json").read_text())["world"] == "sprites"


def test_plain_diffusers_does_not_complain_of_the_shipped_model(capfd):
    code = (
        "from diffusers import StableDiffusionPipeline\n"
        "from tune_a_video_nbs.ldm import model_path\n"
        "StableDiffusionPipeline.from_pretrained(model_path('sprites'))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
    assert "not expected" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "known"), [(RED, True), ("A red star in the snow.", True), ("a red dog", False), ("", False)]
)
def test_knows_what_it_can_parse(world, words, known):
    assert world.knows(words) is known
    if not known:
        with pytest.raises(InputError, match="cannot read"):
            world.parse(words)


def test_recognises_its_own_clips_only(world):
    noise = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    assert world.recognises(draw_clip(RED, 4)) and world.recognises(draw_clip(RED, 4) / 255)
    assert not world.recognises(noise)
    assert not world.recognises(np.zeros((4, 48, 64, 3), np.uint8))


def test_jobs_are_drawn_for_good_and_their_parts_share_no_clip(world):
    assert world.jobs(3) == world.jobs(3) != world.jobs(3, seed=1)
    parts = [{job.drawing for job in world.jobs(30, part)} for part in ("choose", "report")]
    assert not parts[0] & parts[1]
    with pytest.raises(InputError, match="part is 'all'; use 'choose' or 'report'"):
        world.jobs(1, "all")


def test_a_job_draws_its_source_and_the_exact_answers(world):
    job = world.jobs(2)[1]
    source = job.draw(num_frames=4)
    assert np.array_equal(source, draw_clip(job.caption, 4, seeded(job.drawing)))
    for kind, prompt in job.prompts.items():
        scores = world.score(job.draw(prompt, 4), prompt, source, job.caption, job.draw(prompt, 4))
        assert scores["edited"] == scores["all"] == 1.0 and scores["psnr"] == float("inf"), kind
        assert world.score(source, prompt, source, job.caption)["edited"] == 0.0


def test_prompts_are_held_out_and_score_as_drawn(world):
    from tune_a_video_nbs.drawing import ATTRIBUTES
    from tune_a_video_nbs.sprites import held_out

    prompts = world.prompts(16, seed=3)
    for prompt in prompts:
        said = world.parse(prompt)
        triple = (torch.tensor(ATTRIBUTES[k].index(getattr(said, k))) for k in ("shape", "colour", "place"))
        assert held_out(*triple)
    pictures = np.stack([draw_still(prompt) for prompt in prompts])
    assert world.score_stills(pictures, prompts) == dict(colour=1.0, shape=1.0, place=1.0, all=1.0)
    wrong = world.score_stills(pictures[::-1].copy(), prompts)
    assert list(wrong) == ["colour", "shape", "place", "all"] and wrong["all"] < 0.5
    assert [world.parse(p).motion for p in world.prompts(8, motion=True)][0] == "sliding"


def test_stills_know_what_they_show(world):
    stills = world.stills(64, seeded(5))
    assert isinstance(stills, Stills) and stills.pictures.dtype == torch.uint8
    assert stills.labels.shape == (64, 2) and len(stills.captions) == 64
    for caption, (place, thing) in zip(stills.captions, stills.labels.tolist()):
        assert caption.startswith("nothing") == (thing == 64)
        assert 0 <= place < 8
    assert not (world.stills(64, seeded(5), empty=0.0).labels[:, 1] == 64).any()


def test_one_of_each_takes_no_two_alike(world):
    stills = world.stills(300, seeded(5))
    chosen = stills.labels[stills.one_of_each(torch.tensor([1, 4]), seeded(6))]
    assert len(chosen) == len({tuple(row) for row in chosen.tolist()})
    of_places = {tuple(row) for row in stills.labels.tolist() if row[0] in (1, 4)}
    assert {tuple(row) for row in chosen.tolist()} == of_places


def test_training_stills_show_where_the_sprites_are(world):
    stills = world.training_stills(16, seeded(2))
    assert stills.pictures.shape == (16, 64, 64, 3) and stills.pictures.is_floating_point()
    assert stills.masks.shape == stills.near.shape == (16, 64, 64)
    empty = torch.tensor([caption.startswith("nothing") for caption in stills.captions])
    assert torch.equal(stills.masks.amax((1, 2)) == 0, empty)
    assert torch.equal(stills.near.amax((1, 2)) == 0, empty)
    assert stills.captions == world.captions(16, seeded(2), "train")


def test_rivals_begin_with_the_right_caption(world):
    rivals = world.rivals("a small red star is bouncing in the snow")
    assert {name: len(captions) for name, captions in rivals.items()} == dict(
        colour=8, shape=8, place=8, all=512
    )
    for captions in rivals.values():
        assert captions[0] == "a red star in the snow" and len(set(captions)) == len(captions)
    assert set(rivals["shape"]) < set(rivals["all"])


def test_the_score_of_motion_needs_no_right_answer(world):
    clip = draw_clip(RED, 8)
    assert world.score_motion(clip, clip) == dict(motion=0.0, same=1.0, flicker=0.0)


# The miniature.


def test_a_training_that_is_taken_up_again_keeps_its_tokenizer(tmp_path, monkeypatch):
    "The merges come out in any order: built again, the tokenizer may number words otherwise."
    from tune_a_video_nbs import networks

    first = networks.kept_tokenizer(tmp_path)
    monkeypatch.setattr(networks, "build_tokenizer", None)  # nobody builds another
    again = networks.kept_tokenizer(tmp_path)
    assert first.get_vocab() == again.get_vocab()
    assert again("a red star").input_ids == first("a red star").input_ids


def test_training_leaves_torchs_own_random_state_alone(tmp_path):
    from tune_a_video_nbs.miniature import train_unet, train_vae

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_vae(tmp_path, steps=1, batch=2)
    out = train_unet(tmp_path, steps=1, batch=2, stills=4)
    assert torch.equal(torch.rand(3), expected)
    assert out.name == "sprites" and json.loads((out / "settings.json").read_text()) == {"world": "sprites"}
