"""Write README.md from nbs/index.ipynb: its text, and what its cells printed.

GitHub plays no clips, so the players become `web/edits.webp`, a moving picture of the same frames; with `--pictures` that file and the site's card,
`web/card.png`, are drawn again from the players' own bytes (after the index has been run anew)."""

import base64
import json
import re
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent
SITE = "https://tune-a-video-nbs.github.io/tune_a_video_nbs"


def cells() -> list[dict]:
    return json.loads((ROOT / "nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]


def mark(cell: dict, name: str) -> str:
    "A cell's `#| name: value`, without quotes."
    found = re.search(rf'^#\| {name}: "(.*)"$', "".join(cell["source"]), re.M)
    return found[1] if found else ""


def printed(cell: dict, text: str) -> str:
    "What a cell printed: as it is where the cell says that it prints Markdown (`output: asis`), else as a code block."
    return text if "#| output: asis" in "".join(cell["source"]) else f"```\n{text}\n```"


def readme() -> str:
    "Markdown cells as they are, links pointing into nbs/, printed output, players as a picture under their caption's text."
    parts = ["<!-- Made from nbs/index.ipynb by `make export`: edit that. -->"]
    for cell in cells():
        if cell["cell_type"] == "markdown":
            text = re.sub(
                r"</?div[^>]*>\n*", "", "".join(cell["source"])
            )  # the site lays these out side by side
            parts.append(re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", text).rstrip("\n"))
        for out in cell.get("outputs", []):
            if out["output_type"] == "stream" and out["name"] == "stdout":
                parts.append(printed(cell, "".join(out["text"]).rstrip()))
            if "<video" in "".join(out.get("data", {}).get("text/html", "")):
                parts += [
                    f"![{mark(cell, 'fig-alt')}](web/edits.webp)",
                    mark(cell, "fig-cap"),
                    f"**[Read the book]({SITE})**",
                ]
    return "\n\n".join(parts) + "\n"


def clips() -> tuple[list, list]:
    "The players' names and frames, uint8 (f, h, w, 3) each."
    from tune_a_video_nbs.clips import read_clip

    data = next(
        h
        for c in cells()
        for o in c.get("outputs", [])
        for h in ["".join(o.get("data", {}).get("text/html", ""))]
        if "<video" in h
    )
    found = re.findall(r'aria-label="([^"]*)".*?src="data:video/mp4;base64,([^"]*)"', data, re.S)
    movies = []
    for _, data in found:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "clip.mp4").write_bytes(base64.b64decode(data))
            movies.append(read_clip(Path(folder) / "clip.mp4", num_frames=16))
    return [name for name, _ in found], movies


def font(size: int):
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def row(names: list, frames: list, side: int, gap: int, size: int):
    "One picture of frames side by side, each over its name; white, so that it stands on light and dark pages alike."
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (len(frames) * (side + gap) + gap, side + 2 * gap + 3 * size), "white")
    draw = ImageDraw.Draw(image)
    for i, (name, frame) in enumerate(zip(names, frames)):
        x = gap + i * (side + gap)
        image.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST), (x, gap))
        draw.multiline_text(
            (x + side / 2, side + gap + size // 2),
            textwrap.fill(name, int(side / size * 1.7)),
            font=font(size),
            fill="#1d2026",
            anchor="ma",
            align="center",
        )
    return image


def pictures():
    "The moving picture of the README, and the card that is shown where somebody links to the site."
    from PIL import Image, ImageDraw

    names, movies = clips()
    film = [row(names, [m[t] for m in movies], 192, 12, 13) for t in range(len(movies[0]))]
    film[0].save(
        ROOT / "web/edits.webp",
        save_all=True,
        append_images=film[1:],
        duration=125,
        loop=0,
        quality=80,
        method=6,
    )
    card = Image.new("RGB", (1200, 630), "white")
    draw = ImageDraw.Draw(card)
    draw.text((48, 52), "Tune-A-Video, from nothing", font=font(62), fill="#1d2026")
    draw.text((50, 140), "One clip, one sentence. Then change the sentence.", font=font(32), fill="#5b606a")
    card.paste(row(names, [m[len(m) // 4] for m in movies], 264, 24, 20), (12, 224))
    card.quantize(192).save(ROOT / "web/card.png", optimize=True)


if __name__ == "__main__":
    if "--pictures" in sys.argv:
        pictures()
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
