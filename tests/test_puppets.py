"The second world: its grammar, its drawing, and what the drawing says of itself; and what it cannot do yet."

from time import process_time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tune_a_video_nbs.drawing import COLOURS
from tune_a_video_nbs.errors import InputError
from tune_a_video_nbs.puppet_places import PLACES, draw_scenes
from tune_a_video_nbs.puppet_scenes import (
    PuppetDescription,
    draw_puppets,
    held_out_puppets,
    parse_puppets,
    puppet_scenes,
    random_puppets,
)
from tune_a_video_nbs.puppet_world import known_clip, puppet_jobs, score_known, visible_next, warp
from tune_a_video_nbs.puppets import SPECIES, VERBS
from tune_a_video_nbs.world import get_world


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def world():
    return get_world("puppets")


def all_descriptions():
    "Every way to leave something open, each with some words."
    species = [None, *SPECIES]
    for i in range(0, 6 * 9 * 8 * 7, 13):
        noun = species[i % 7]
        colour = None if noun is None else [None, *COLOURS][i // 7 % 9]
        second = None if noun is None else [None, *SPECIES][i // 3 % 7]
        second_colour = None if second is None else [None, *COLOURS][i // 5 % 9]
        verb, place = [None, *VERBS][i // 2 % 8], [None, *PLACES][i // 11 % 7]
        yield PuppetDescription(noun, colour, verb, place, second, second_colour)


def test_grammar_round_trip():
    for said in all_descriptions():
        assert parse_puppets(said.caption()) == said
    assert parse_puppets("  A red CAT is walking in the forest. ").colour == "red"


@pytest.mark.parametrize(
    "caption",
    [
        *("a red star on the grass", "a cat are walking", "a cat and a dog", "a cat and a frog is walking"),
        "",
        *("something and a cat", "a walking cat", "a cat in the forest is walking", "red cat"),
    ],
)
def test_what_the_grammar_lacks(caption):
    with pytest.raises(InputError, match="cannot read"):
        parse_puppets(caption)


def test_one_seed_one_clip():
    a = draw_puppets("a cat and a frog are jumping", 4, seeded(3))
    assert a.dtype == np.uint8 and a.shape == (4, 64, 64, 3)
    assert (a == draw_puppets("a cat and a frog are jumping", 4, seeded(3))).all()
    assert (a != draw_puppets("a cat and a frog are jumping", 4, seeded(4))).any()


def test_words_change_only_what_they_name():
    red = puppet_scenes("a red cat is walking", 4, seeded(5))
    blue = puppet_scenes("a blue cat is walking", 4, seeded(5))
    for name, value in vars(red.puppets).items():
        same = (value[:, 0] == getattr(blue.puppets, name)[:, 0]).all()
        assert same == (name != "colour"), name
    assert (red.layout == blue.layout).all() and (red.pan == blue.pan).all()


def test_looks_and_layout_stay_over_a_clip():
    scenes = puppet_scenes("something is dancing", 6, seeded(1))
    puppets = scenes.puppets
    for value in (scenes.layout, scenes.place, puppets.cloth, puppets.species, puppets.build):
        assert (value == value[:1]).all()
    assert len(set(scenes.puppets.phase[:, 0].tolist())) == 6


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("species", SPECIES)
def test_every_species_does_everything(species, verb):
    "Every one is drawn, whole, large enough to be seen, in the colour that was asked for."
    known = known_clip(f"a green {species} is {verb} in the snow", 6, seeded(2))
    share = known.masks[:, 0].mean((1, 2))
    assert (share > 0.06).all() and (share < 0.5).all()
    assert known.masks[:, 1].max() == 0
    coat = known.masks[:, 0] > 0.99
    r, g, b = known.pictures[coat].unbind(-1)
    assert ((g > 1.3 * r) & (g > 1.3 * b)).float().mean() > 0.25
    edge = torch.cat([known.masks[..., 0], known.masks[..., -1], known.masks[..., 0, :]], -1)
    assert edge.max() < 0.5


def test_outlines_tell_the_species_and_the_verbs_apart():
    "No two species, and no two verbs, have masks that are nearly the same."
    for captions in (
        [f"a red {species} is sitting" for species in SPECIES],
        [f"a red cat is {verb}" for verb in VERBS],
    ):
        masks = torch.stack([known_clip(c, 3, seeded(9)).masks[1, 0] for c in captions])
        for i in range(len(masks)):
            for j in range(i):
                both, either = torch.minimum(masks[i], masks[j]), torch.maximum(masks[i], masks[j])
                assert both.sum() / either.sum() < 0.93, (captions[i], captions[j])


def test_a_jump_leaves_the_ground_and_a_walk_does_not():
    soles = {}
    for verb in ("jumping", "walking"):
        scenes = puppet_scenes(f"a cat is {verb}", 16, seeded(6))
        rows = draw_scenes(scenes).masks[:, 0].amax(-1) > 0.5
        lowest = (rows * torch.arange(64)).amax(-1)
        soles[verb] = lowest.max() - lowest.min()
    assert soles["jumping"] >= 8 > 3 >= soles["walking"]


def test_masks_agree_with_pixels():
    "Where no mask is, the picture is that of the empty place, but for shadows; where one is full, it is not."
    scenes, _ = random_puppets(60, seeded(0))
    known = draw_scenes(scenes)
    empty = puppet_scenes("something", 1).part(torch.zeros(60, dtype=torch.long))
    empty.place, empty.layout, empty.pan = scenes.place, scenes.layout, scenes.pan
    empty.puppets.species = torch.full((60, 2), -1)
    place = draw_scenes(empty).pictures
    total = known.masks.sum(1)
    assert total.min() >= 0 and total.max() <= 1 + 1e-5
    differ = (known.pictures - place).abs().amax(-1) > 0.02
    outside = total < 1e-4
    feet = (scenes.puppets.feet * 64).nan_to_num(-99)
    y = torch.arange(64)[None, :, None] + 0.5
    near_ground = ((y[..., None] - feet[:, None, None, :, 1]).abs() < 6).any(-1).expand_as(outside)
    assert not (differ & outside & ~near_ground).any()
    assert differ[total > 0.99].float().mean() > 0.95
    assert (known.depth[outside] == 0).all() and (known.depth[total > 0.99] > 0).all()


def test_the_near_puppet_hides_the_far_one():
    "What both would cover belongs to the near one, and depth says so."
    scenes = puppet_scenes("a bear and a bear are waving", 1, seeded(12))
    scenes.puppets.feet[:, 1] = scenes.puppets.feet[:, 0] + torch.tensor([0.08, 0.04])
    both = draw_scenes(scenes)
    alone = puppet_scenes("a bear and a bear are waving", 1, seeded(12))
    alone.puppets.feet[:, 1] = scenes.puppets.feet[:, 1]
    alone.puppets.species[:, 0] = -1
    near = draw_scenes(alone).masks[:, 1]
    assert (both.masks[:, 1] - near).abs().max() < 1e-5
    assert (both.depth[near > 0.6] == 2).all()
    assert (both.masks[:, 0] <= 1 - near + 1e-5).all() and (both.masks[:, 0] > 0.5).any()


def test_joints_lie_on_their_puppet():
    known = known_clip("a bear is waving", 4, seeded(1))
    joints = known.joints[:, 0]
    grid = 2 * joints[:, None] / 64 - 1
    there = F.grid_sample(known.masks[:, :1], grid, align_corners=False)
    assert there.min() > 0.5
    assert known.joints[:, 1].isnan().all()


@pytest.mark.parametrize("verb", VERBS)
def test_flow_leads_to_the_next_frame(verb):
    "Fetched back along the flow, frame t + 1 is frame t wherever both show the same thing."
    known = known_clip(f"a bear and a duck are {verb}", 16, seeded(2), side=192)
    back = warp(known.pictures[1:], known.flow[:-1])
    moved = (back - known.pictures[:-1]).abs().mean(-1) * 255
    stayed = (known.pictures[1:] - known.pictures[:-1]).abs().mean(-1) * 255
    same = visible_next(known.depth, known.flow)
    for k in (0, 1, 2):
        here = same & (known.depth[:-1] == k)
        assert here.float().mean() > 0.01
        assert moved[here].median() < 1.5
        assert moved[here].mean() <= 0.6 * stayed[here].mean() + 0.5


def test_flow_of_a_panning_camera():
    scenes = puppet_scenes("a cat is sitting in the city", 2, seeded(0))
    scenes.puppets.species[:] = -1
    scenes.pan = torch.tensor([0.0, 4 / 64])
    known = draw_scenes(scenes.part(torch.tensor([0])), following=scenes.part(torch.tensor([1])))
    assert known.flow[0, 0].abs().max() == 0  # the sky
    assert (known.flow[0, -1, :, 0] + 4).abs().max() < 1e-4  # the ground
    assert known.flow[..., 1].abs().max() < 1e-4


def test_larger_is_the_same_picture():
    scenes = puppet_scenes("a frog is dancing in the desert", 3, seeded(4))
    small, large = draw_scenes(scenes, 64).pictures, draw_scenes(scenes, 256).pictures
    shrunk = F.avg_pool2d(large.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    assert (small - shrunk).abs().mean() < 0.02


def test_splits_and_shares():
    for split in ("train", "held_out"):
        scenes, captions = random_puppets(300, seeded(1), split)
        puppets = scenes.puppets
        there = puppets.species >= 0
        kept = held_out_puppets(puppets.species, puppets.colour, scenes.place[:, None])
        assert (kept[there] == (split == "held_out")).all()
        assert all(parse_puppets(caption) for caption in captions)
    with pytest.raises(InputError, match="split is 'test'"):
        random_puppets(2, seeded(0), "test")
    two = (puppets.species[:, 1] >= 0).float().mean()
    assert 0.1 < two < 0.3


def test_stills_of_the_world(world):
    stills = world.stills(120, seeded(0))
    assert stills.pictures.shape == (120, 64, 64, 3) and stills.pictures.dtype == torch.uint8
    assert stills.labels.unique(dim=0).shape[0] == len(set(stills.captions))
    nobody = stills.labels[:, 1] == 6 * 8 * 7
    assert nobody.tolist() == [caption.startswith("nothing") for caption in stills.captions]
    some = world.training_stills(20, seeded(0))
    assert some.pictures.shape == (20, 64, 64, 3) and some.masks.shape == some.near.shape == (20, 64, 64)
    assert (some.near.mean((1, 2)) > some.masks.mean((1, 2))).all()


def test_jobs(world):
    jobs = world.jobs(6)
    assert jobs == world.jobs(6)
    assert not {job.drawing for job in jobs} & {job.drawing for job in world.jobs(6, "choose")}
    assert [job.world for job in jobs] == ["puppets"] * 6
    for job in jobs:
        scenes = puppet_scenes(job.caption, 1, seeded(job.drawing))
        first = scenes.puppets.species[0, 0], scenes.puppets.colour[0, 0], scenes.place[0]
        assert held_out_puppets(*first)
        assert all(world.knows(prompt) for prompt in job.prompts.values())
    assert parse_puppets(jobs[1].caption).colour is None  # open in every second one
    assert jobs[0].draw(num_frames=2).shape == (2, 64, 64, 3)
    with pytest.raises(InputError, match="part is 'test'"):
        puppet_jobs(1, "test")


def test_scores_by_exact_answers():
    job = puppet_jobs(1)[0]
    exact = job.draw()
    perfect = score_known(exact, job.caption, job.drawing)
    assert perfect["psnr"] > 50 and perfect["puppet"] > 50 and perfect["ground"] > 50
    recoloured = score_known(job.draw(job.prompts["colour"]), job.caption, job.drawing)
    assert recoloured["ground"] > recoloured["puppet"] + 6
    elsewhere = score_known(job.draw(job.prompts["place"]), job.caption, job.drawing)
    assert elsewhere["puppet"] > elsewhere["ground"] + 6
    flashing = exact.copy()
    flashing[::2] = (flashing[::2] * 0.7).astype(np.uint8)
    assert score_known(flashing, job.caption, job.drawing)["flicker"] > perfect["flicker"] + 15


def test_rivals_put_the_right_one_first(world):
    rivals = world.rivals("a red cat is walking")
    assert set(rivals) == {"species", "colour", "verb", "all"}
    assert all(group[0] == "a red cat is walking" for group in rivals.values())
    assert len(rivals["all"]) == len(set(rivals["all"])) == 6 * 8 * 7


def test_without_a_judge_nothing_is_read(world):
    clip = world.draw("a cat is walking", 2)
    for ask in (
        lambda: world.score(clip, "a cat", clip, "a cat"),
        lambda: world.score_motion(clip, clip),
        lambda: world.score_stills(clip, ["a cat", "a cat"]),
    ):
        with pytest.raises(InputError, match="judge is not trained yet"):
            ask()
    assert not world.recognises(clip)


def test_no_frames():
    with pytest.raises(InputError, match="num_frames is 0"):
        draw_puppets("a cat", 0)


def test_speed(capsys):
    "Printed for the eye; machines differ."
    scenes, _ = random_puppets(128, seeded(0))
    draw_scenes(scenes)
    start = process_time()
    draw_scenes(scenes)
    with capsys.disabled():
        print(f" {128 / (process_time() - start):.0f} stills for a second of CPU ", end="")
