"""A stand-in for `tune_a_video_nbs.world` until that is merged: then delete this file and import from `.world`."""

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .oracle import flicker, motion_error, read_stills, sameness, score_edit
from .sprites import (
    COLOURS,
    MOTIONS,
    PLACES,
    SHAPES,
    SIDE,
    Description,
    Scenes,
    _draw_triples,
    draw_clip,
    parse_caption,
    random_stills,
    render,
    to_uint8,
)

World = Any
ATTRIBUTES = dict(colour=tuple(COLOURS), shape=SHAPES, place=tuple(PLACES))


@dataclass(frozen=True)
class Job:
    "One clip and the edits to be tried on it; every clip of it can be drawn exactly."

    caption: str
    prompts: dict[str, str]
    drawing: int
    world: str = "sprites"

    def draw(self, words: str | None = None, num_frames: int = 8) -> np.ndarray:
        "Draw the source, or the exact answer to one of the prompts."
        return draw_clip(words or self.caption, num_frames, torch.Generator().manual_seed(self.drawing))


@dataclass
class Stills:
    "Captioned pictures to learn from, and what each shows."

    pictures: Tensor
    captions: list[str]
    labels: Tensor

    def one_of_each(self, places: Tensor, generator: torch.Generator) -> Tensor:
        "Draw all that these places hold, each thing once, whichever picture of it chance picks."
        place, thing = self.labels.unbind(1)
        luck = torch.rand(len(place), generator=generator)
        kinds = int(thing.max()) + 1
        key = kinds * place + thing
        best = torch.zeros(kinds * (int(place.max()) + 1)).scatter_reduce(0, key, luck, "amax")
        return ((luck == best[key]) & torch.isin(place, places)).nonzero()[:, 0]


class SpriteWorld:
    "The sprites, by the contract."

    name = "sprites"
    side = SIDE

    def draw(self, caption: str, num_frames: int = 8, generator: torch.Generator | None = None) -> np.ndarray:
        return draw_clip(caption, num_frames, generator)

    def score(self, clip: Any, prompt: str, source: Any, caption: str, exact: Any = None) -> dict:
        return score_edit(clip, prompt, source, caption, exact)

    def score_motion(self, clip: Any, source: Any) -> dict[str, float]:
        return dict(motion=motion_error(clip, source), same=sameness(clip), flicker=flicker(clip))

    def score_stills(self, pictures: Any, captions: list[str]) -> dict[str, float]:
        seen = read_stills(pictures)
        wanted = [parse_caption(caption) for caption in captions]
        right = {}
        for name, words in ATTRIBUTES.items():
            asked = torch.tensor([words.index(getattr(said, name)) for said in wanted])
            right[name] = getattr(seen, name) == asked
        shares = {name: value.double().mean().item() for name, value in right.items()}
        return shares | dict(all=torch.stack(list(right.values())).all(0).double().mean().item())

    def _held_out(self, count: int, seed: int, motion: bool) -> list[Description]:
        generator = torch.Generator().manual_seed(seed)
        shape, colour, place = _draw_triples(count, 1, "held_out", generator)
        return [
            Description(
                list(COLOURS)[colour[i, 0]],
                SHAPES[shape[i, 0]],
                list(PLACES)[place[i]],
                MOTIONS[i % 8] if motion else None,
            )
            for i in range(count)
        ]

    def prompts(self, count: int, seed: int = 0, motion: bool = False) -> list[str]:
        return [d.caption() for d in self._held_out(count, seed, motion)]

    def jobs(self, count: int, part: str = "report", seed: int = 0) -> list[Job]:
        if part not in ("choose", "report"):
            raise InputError(f"part is {part!r}; use 'choose' or 'report'")
        number = 2 * seed + (part == "report")
        generator = torch.Generator().manual_seed(1000 + number)
        return [
            Job(d.caption(), _edit_prompts(d, generator), 10_000 * (number + 1) + i)
            for i, d in enumerate(self._held_out(count, 500 + number, True))
        ]

    def rivals(self, caption: str) -> dict[str, list[str]]:
        said = parse_caption(caption)
        plain = Description(said.colour, said.shape, said.place)
        found, everything = {}, [plain]
        for name, words in ATTRIBUTES.items():
            found[name] = [replace(plain, **{name: word}) for word in words]
            everything = [replace(other, **{name: word}) for other in everything for word in words]
        found["all"] = everything
        first = plain.caption()
        captions = {name: [other.caption() for other in others] for name, others in found.items()}
        return {name: [first, *(c for c in group if c != first)] for name, group in captions.items()}

    def stills(
        self, count: int, generator: torch.Generator, split: str = "train", empty: float = 0.1
    ) -> Stills:
        scenes, captions = random_stills(count, generator, split, counts=(empty, 1 - empty, 0.0))
        parts = [
            Scenes(*(getattr(scenes, f.name)[i] for f in fields(Scenes)))
            for i in torch.arange(count).split(256)
        ]
        pictures = torch.cat([to_uint8(render(part)) for part in parts])
        shape, colour = scenes.shape[:, 0], scenes.colour[:, 0]
        thing = torch.where(shape < 0, 64, 8 * shape + colour)
        return Stills(pictures, captions, torch.stack([scenes.place, thing], 1))


def _edit_prompts(d: Description, generator: torch.Generator) -> dict[str, str]:
    changes = {}
    for name, words in ATTRIBUTES.items():
        others = [word for word in words if word != getattr(d, name)]
        changes[name] = others[int(torch.randint(len(others), (1,), generator=generator))]
    prompts = {name: replace(d, **{name: word}).caption() for name, word in changes.items()}
    return prompts | dict(everything=replace(d, **changes).caption())


_SPRITES = SpriteWorld()


def get_world(world: Any = "sprites") -> Any:
    "Return the world of that name, or the world itself."
    if not isinstance(world, str):
        return world
    if world != "sprites":
        raise InputError(f"no world called {world!r}: known are 'sprites'")
    return _SPRITES
