"""What the site's build adds to mkdocs: pages from outside docs/, equations as MathML, and examples in docstrings."""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from griffe import Extension
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "reporting.md": "SECURITY.md",
    "license.md": "LICENSE",
    "paper_report.md": "experiments/paper/REPORT.md",
}
"""Pages of the site that are files of the checkout."""

SITE = {source: page for page, source in PAGES.items()}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and the pictures from outside docs/."""
    pictures = {picture.name: str(picture) for picture in (ROOT / "experiments" / "paper").glob("*.png")}
    for name, source in {**{page: str(ROOT / path) for page, path in PAGES.items()}, **pictures}.items():
        files.append(File.generated(config, name, abs_src_path=source))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links between files of the checkout into links between pages of the site."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(source)

    def linked(match: re.Match[str]) -> str:
        path, hash_sign, heading = match[2].partition("#")
        target = posixpath.normpath(posixpath.join(folder, path)) if path else source
        own = target.removeprefix("docs/") if target.startswith("docs/") else posixpath.basename(target)
        name = SITE.get(target, own)
        return f"{match[1]}{name}{hash_sign}{heading}"

    text = re.sub(r'(\]\(|<img src=")(?!https?:)([^)"\s]+)(?=[)"])', linked, markdown)
    return f"# Licence\n\n```text\n{text}```\n" if source == "LICENSE" else text


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Turns equations into MathML, which browsers draw themselves.

    Raises:
        PluginError: If a command of an equation is unknown.
    """

    def equation(match: re.Match[str]) -> str:
        tex = html.unescape(match[3]).strip()
        drawn = str(convert(tex, display="block" if match[2] == "[" else "inline"))
        if "\\" in drawn:
            raise PluginError(f"{page.file.src_uri}: latex2mathml does not know a command of {tex}")
        return drawn.replace("<mo>&#x02016;</mo>", '<mo stretchy="false">&#x02016;</mo>')

    return re.sub(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', equation, content, flags=re.DOTALL)


class ExampleSections(Extension):
    """Shows the doctests under ``Example:`` as code."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Gives the section the name under which doctests are looked for."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
