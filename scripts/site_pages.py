"""Hooks of mkdocs (mkdocs.yml): pages with a source outside docs/, and links to files there.

README.md is the site's first page, CONTRIBUTING.md and CHANGELOG.md are pages of it, and the page
of the commands is made from their help. Links work in the repository and on the site: one to a
file that is no page becomes a link to the repository, or its text if `extra.repository` is not set.
"""

import importlib
import logging
import posixpath
import re
import textwrap
from pathlib import Path
from typing import Any

from absl import flags
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from biomedlm_jax.cli import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}
SOURCES["changelog.md"] = "CHANGELOG.md"
COMMANDS_PAGE = "reference/commands.md"
CODE = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[([^]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
TAGGED = re.compile(
    r"^(```\w+) #.*$", re.MULTILINE
)  # ```bash # command, which mkdocs does not read
log = logging.getLogger("mkdocs.plugins.site_pages")


def on_config(config: MkDocsConfig) -> None:
    """Link the repository in the footer, if it is known."""
    if repository := config.extra["repository"]:
        config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": repository}]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not have."""
    for page, source in SOURCES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS_PAGE, content=commands_page()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the site's pages, or at the repository's files."""
    here = page.file.src_uri
    folder = "" if here in SOURCES else posixpath.join("docs", posixpath.dirname(here))
    markdown = TAGGED.sub(r"\1", markdown)
    pages = {f"docs/{file.src_uri}": file.src_uri for file in files.documentation_pages()}
    pages |= {source: name for name, source in SOURCES.items()}

    def point(match: re.Match[str]) -> str:
        text, path, anchor = match.groups(default="")
        target = posixpath.normpath(posixpath.join(folder, path))
        if target in pages:
            start = posixpath.dirname(here) or "."
            return f"[{text}]({posixpath.relpath(pages[target], start)}{anchor})"
        if not (ROOT / target).exists():
            log.warning("%s links to %s, which does not exist", here, target)
        if not (repository := config.extra["repository"]):
            return text
        return f"[{text}]({repository}/blob/main/{target}{anchor})"

    parts, end = [], 0
    for block in CODE.finditer(markdown):
        parts += [LINK.sub(point, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, LINK.sub(point, markdown[end:])])


def commands_page() -> str:
    """Return a page with the description and the flags of each command."""
    lines = ["# Commands", "", "`biomedlm COMMAND --help` prints the same text.", ""]
    for name in COMMANDS:
        command = importlib.import_module(f"biomedlm_jax.commands.{name.replace('-', '_')}")
        lines += [f"## biomedlm {name}", "", *paragraphs(command.__doc__ or ""), ""]
        lines += [f"- {flag_line(command.FLAGS[flag])}" for flag in sorted(command.FLAGS)]
        lines.append("")
    return "\n".join(lines)


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs of a docstring as Markdown; indented ones are commands."""
    lines = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("    "):
            lines += ["```text", textwrap.dedent(paragraph), "```", ""]
        else:
            lines += [plain(paragraph), ""]
    return lines


def plain(text: str) -> str:
    """Return a text in which Markdown and HTML find no mark-up but code."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"[*<>&\[\]]", lambda m: f"&#{ord(m[0])};", part) for part in parts[::2]]
    return "`".join(parts)


def flag_line(flag: flags.Flag[Any]) -> str:
    """Return a flag's name, meaning and default."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    default = "" if flag.default in (None, [], "") else (flag.default_as_str or "").strip("'")
    return f"`{name}`: {plain(flag.help or '')}" + (f" (default: `{default}`)" if default else "")
