"""Write README.md from nbs/index.ipynb: its text, and what its cells printed.

GitHub plays no clips, so the players become `web/edits.webp`, a moving picture of the same frames. With
`--pictures` that file and the site's card, `web/card.png`, are drawn again from the players' own bytes."""

import base64
import json
import re
import sys
import tempfile
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tune_a_video_nbs.clips import read_clip

ROOT = Path(__file__).parent.parent
SITE = "https://tune-a-video-nbs.github.io/tune_a_video_nbs"
INK = "#1d2026"
PLAYER = re.compile(r'aria-label="([^"]*)".*?src="data:video/mp4;base64,([^"]*)"', re.S)


# The text.


def cells() -> list[dict]:
    return json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def html(output: dict) -> str:
    return "".join(output.get("data", {}).get("text/html", ""))


def mark(cell: dict, name: str) -> str:
    "A cell's `#| name: value`, without quotes."
    found = re.search(rf'^#\| {name}: "(.*)"$', source(cell), re.M)
    return found[1] if found else ""


def text_parts(cell: dict) -> list[str]:
    "A Markdown cell for the README: links point into nbs/, and nothing lies side by side."
    text = re.sub(r"</?div[^>]*>\n*", "", source(cell))
    return [re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", text).rstrip("\n")]


def output_parts(cell: dict) -> list[str]:
    "What a cell printed, as Markdown where it says so (`output: asis`), and its players as a picture."
    parts = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            printed = "".join(output["text"]).rstrip()
            parts.append(printed if "#| output: asis" in source(cell) else f"```\n{printed}\n```")
        if "<video" in html(output):
            picture = f"![{mark(cell, 'fig-alt')}](web/edits.webp)"
            parts += [picture, mark(cell, "fig-cap"), f"**[Read the book]({SITE})**"]
    return parts


def readme() -> str:
    parts = ["<!-- Made from nbs/index.ipynb by `make export`: edit that. -->"]
    for cell in cells():
        parts += text_parts(cell) if cell["cell_type"] == "markdown" else output_parts(cell)
    return "\n\n".join(parts) + "\n"


# The pictures.


def clips() -> dict[str, np.ndarray]:
    "The players' names and frames, uint8 (f, h, w, 3) each."
    outputs = [output for cell in cells() for output in cell.get("outputs", [])]
    players = next(html(output) for output in outputs if "<video" in html(output))
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, data in PLAYER.findall(players):
            file = Path(folder) / "clip.mp4"
            file.write_bytes(base64.b64decode(data))
            found[name] = read_clip(file, num_frames=16)
    return found


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def row(frames: dict[str, np.ndarray], side: int, gap: int, size: int) -> Image.Image:
    "Frames side by side, each over its name; on white, so that it stands on light and dark pages alike."
    picture = Image.new("RGB", (len(frames) * (side + gap) + gap, side + 2 * gap + 3 * size), "white")
    draw = ImageDraw.Draw(picture)
    for i, (name, frame) in enumerate(frames.items()):
        x = gap + i * (side + gap)
        picture.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST), (x, gap))
        words = textwrap.fill(name, int(side / size * 1.7))
        middle = (x + side / 2, side + gap + size // 2)
        draw.multiline_text(middle, words, font=font(size), fill=INK, anchor="ma", align="center")
    return picture


def draw_film(movies: dict[str, np.ndarray]) -> None:
    "The moving picture of the README."
    num_frames = min(len(movie) for movie in movies.values())
    film = [
        row({name: m[t] for name, m in movies.items()}, side=192, gap=12, size=13) for t in range(num_frames)
    ]
    film[0].save(
        ROOT / "web/edits.webp",
        save_all=True,
        append_images=film[1:],
        duration=125,
        loop=0,
        quality=80,
        method=6,
    )


def draw_card(movies: dict[str, np.ndarray]) -> None:
    "The card that is shown where somebody links to the site."
    card = Image.new("RGB", (1200, 630), "white")
    draw = ImageDraw.Draw(card)
    draw.text((48, 52), "Tune-A-Video, from nothing", font=font(62), fill=INK)
    draw.text((50, 140), "One clip, one sentence. Then change the sentence.", font=font(32), fill="#5b606a")
    frames = {name: movie[len(movie) // 4] for name, movie in movies.items()}
    card.paste(row(frames, side=264, gap=24, size=20), (12, 224))
    card.quantize(192).save(ROOT / "web/card.png", optimize=True)


if __name__ == "__main__":
    if "--pictures" in sys.argv:
        movies = clips()
        draw_film(movies)
        draw_card(movies)
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
