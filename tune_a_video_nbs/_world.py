"""A stand-in for the `World` of oracle until that is merged: then delete this file and import these names from `.oracle`."""

from dataclasses import fields, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

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
    random_stills,
    render,
    to_uint8,
)


class Job(NamedTuple):
    "One clip to tune on, and the edits to ask for."

    caption: str
    prompts: dict[str, str]
    drawing: int


class World(Protocol):
    "What evaluation needs of a world."

    name: str
    side: int

    def draw(
        self, caption: str, num_frames: int = 8, generator: torch.Generator | None = None
    ) -> np.ndarray: ...

    def score(self, clip: np.ndarray, prompt: str, source: np.ndarray, caption: str) -> dict: ...

    def jobs(self, count: int, part: str = "report", seed: int = 0) -> list[Job]: ...

    def prompts(self, count: int, seed: int = 0) -> list[str]: ...

    def stills(
        self, count: int, generator: torch.Generator, split: str = "train"
    ) -> tuple[Tensor, list[str], dict[str, Tensor]]: ...


class SpritesWorld:
    "The sprites, by the contract."

    name = "sprites"
    side = SIDE

    def draw(
        self, caption: str, num_frames: int = 8, generator: torch.Generator | None = None
    ) -> np.ndarray:
        return draw_clip(caption, num_frames, generator)

    def score(self, clip: np.ndarray, prompt: str, source: np.ndarray, caption: str) -> dict:
        from .oracle import score_edit

        return score_edit(clip, prompt, source, caption)

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

    def prompts(self, count: int, seed: int = 0) -> list[str]:
        "Return captions of stills of held-out triples."
        return [d.caption() for d in self._held_out(count, seed, False)]

    def jobs(self, count: int, part: str = "report", seed: int = 0) -> list[Job]:
        "Return jobs on held-out triples."
        if part not in ("choose", "report"):
            raise ValueError(f"part is {part!r}; use 'choose' or 'report'")
        number = 2 * seed + (part == "report")
        generator = torch.Generator().manual_seed(1000 + number)
        return [
            Job(d.caption(), _edit_prompts(d, generator), 10_000 * (number + 1) + i)
            for i, d in enumerate(self._held_out(count, 500 + number, True))
        ]

    def stills(
        self, count: int, generator: torch.Generator, split: str = "train"
    ) -> tuple[Tensor, list[str], dict[str, Tensor]]:
        "Return captioned pictures of one sprite or, one in ten, of none, and their labels (-1 where there is nothing)."
        scenes, captions = random_stills(count, generator, split, counts=(0.1, 0.9, 0.0))
        parts = [
            Scenes(*(getattr(scenes, f.name)[i] for f in fields(Scenes)))
            for i in torch.arange(count).split(256)
        ]
        pictures = torch.cat([to_uint8(render(part)) for part in parts])
        shape = scenes.shape[:, 0]
        colour = torch.where(shape < 0, -1, scenes.colour[:, 0])
        return pictures, captions, dict(colour=colour, shape=shape, place=scenes.place)


def _edit_prompts(d: Description, generator: torch.Generator) -> dict[str, str]:
    def other(names: list[str], now: str) -> str:
        left = [n for n in names if n != now]
        return left[torch.randint(len(left), (1,), generator=generator)]

    new = dict(
        colour=other(list(COLOURS), d.colour),
        shape=other(list(SHAPES), d.shape),
        place=other(list(PLACES), d.place),
    )
    prompts = {kind: replace(d, **{kind: word}).caption() for kind, word in new.items()}
    prompts["everything"] = replace(d, **new).caption()
    return prompts


_SPRITES = SpritesWorld()


def get_world(name: "str | World") -> World:
    "Return the world of that name, or the world itself."
    if not isinstance(name, str):
        return name
    if name != "sprites":
        raise ValueError(f"no world called {name!r}: use 'sprites'")
    return _SPRITES
