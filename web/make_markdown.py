"""After the site is rendered: the reference of each module once more as plain Markdown.

It lies where the `Docs:` line of the module's docstring says; nbdev writes that line."""

import re

from make_api import ROOT, module_page, modules, text


def docs_path(module: str) -> str | None:
    "Where the docstring of a module says that its documentation lies, below the site's address."
    found = re.search(r"^Docs: https://[^/]+/[^/]+/([\w./]+)", text(module), re.M)
    return found[1] if found else None


def plain_markdown(module: str) -> str:
    "The page of a module without Quarto's front matter and anchors."
    body = module_page(module).split("---\n", 2)[2]
    return f"# tune_a_video_nbs.{module}\n" + re.sub(r"\{[#.][^}]*\}", "", body)


if __name__ == "__main__":
    for module in modules():
        path = docs_path(module)
        if path is not None:
            out = ROOT / "_docs" / path
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(plain_markdown(module), encoding="utf-8")
