"""After the site is rendered: each module's reference once more as plain Markdown, where the `Docs:` line of its docstring says (nbdev writes that line)."""

import re

from make_api import ROOT, module_page, modules, text


def docs_path(module: str) -> str | None:
    "Where the docstring of a module says that its documentation lies, below the site's address."
    found = re.search(r"^Docs: https://[^/]+/[^/]+/([\w./]+)", text(module), re.M)
    return found and found[1]


if __name__ == "__main__":
    for module in modules():
        path = docs_path(module)
        if path is None:
            continue
        body = re.sub(r"\{[#.][^}]*\}", "", module_page(module).split("---\n", 2)[2])
        out = ROOT / "_docs" / path
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(f"# tune_a_video_nbs.{module}\n{body}", encoding="utf-8")
