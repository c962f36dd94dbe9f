"Write README.md from nbs/index.ipynb: its text, and what its cells printed. GitHub plays no clips, so players are left to the site."
import json, re
from pathlib import Path

ROOT = Path(__file__).parent.parent

def readme() -> str:
    "Markdown cells as they are, links pointing into nbs/, and printed output as code blocks."
    parts = ["<!-- Made from nbs/index.ipynb by `make export`: edit that. -->"]
    for cell in json.loads((ROOT/"nbs/index.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown": parts.append(re.sub(r"\]\((\w+\.ipynb)\)", r"](nbs/\1)", "".join(cell["source"])))
        for out in cell.get("outputs", []):
            if out["output_type"] == "stream" and out["name"] == "stdout": parts.append("```\n" + "".join(out["text"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"

if __name__ == "__main__": (ROOT/"README.md").write_text(readme(), encoding="utf-8")
