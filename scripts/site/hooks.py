"""What `make site` adds to MkDocs: pages of the root, the reference, examples, links, llms.txt.

Links are written as a code host needs them, between files of the repository. Here they become links
between pages of the site; a link to a file that is on no page is an error.
"""

import logging
import posixpath
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))

from commands import commands_page
from public_names import PACKAGE, ROOT, PublicModule, public_modules

_log = logging.getLogger("mkdocs.hooks.site")  # a warning here fails a strict build
_ROOT_PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
}
_SOURCE_PAGES = {"examples": "examples.md", "deploy": "deploy.md"}  # folders, a page each
_WITHOUT_MENU = {"index.md", "tutorial.md"}  # alone in their part of it
_LINK = re.compile(r"(?<!`)(\[[^\]]*\]\()([^)\s#]*)(#[^)\s]*)?(\))")
_FENCE = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
_LANGUAGES = {".py": "python", ".yml": "yaml", ".json": "json", "": "dockerfile"}
_LARGEST = 20_000  # characters of a file that is shown; dashboards are longer
_modules: list[PublicModule] = []
_markdown: dict[str, str] = {}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the reference into the menu."""
    _modules[:] = public_modules()
    _markdown.clear()
    for entry in config.nav or []:
        if "Reference" in entry:
            api = [{_short(module): _reference_uri(module)} for module in _modules]
            entry["Reference"].insert(1, {"Python": api})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are no files of ``docs``."""
    pages = {uri: (ROOT / path).read_text("utf-8") for path, uri in _ROOT_PAGES.items()}
    pages |= {_reference_uri(module): _reference_page(module) for module in _modules}
    pages["reference/index.md"] = _reference_index()
    pages["commands.md"] = commands_page()
    pages["examples.md"] = _examples_page()
    pages["deploy.md"] = _deploy_page()
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - MkDocs passes them by name
    """Turn links between files of the repository into links between pages."""
    uri = page.file.src_uri
    source = next((path for path, own in _ROOT_PAGES.items() if own == uri), f"docs/{uri}")
    pieces, end = [], 0
    for fence in _FENCE.finditer(markdown):
        pieces += [_relinked(markdown[end : fence.start()], source, uri), fence.group()]
        end = fence.end()
    if uri in _WITHOUT_MENU:
        page.meta["hide"] = ["navigation"]
    changed = "".join([*pieces, _relinked(markdown[end:], source, uri)])
    _markdown[uri] = changed
    return changed


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Show literal blocks of docstrings, which begin with ``::``; no cell heads nothing."""
    return (
        html.replace("<p>::</p>\n", "").replace("::</p>", ":</p>").replace("<th></th>", "<td></td>")
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt and the text of each page, and find what a reader would miss."""
    site = Path(config.site_dir)
    (site / "llms.txt").write_text(_llms_txt(config), "utf-8")
    for uri, text in _markdown.items():
        if uri.startswith("reference/"):  # directives, which only the built page resolves
            continue
        target = site / uri
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    problems = [*_missing_names(site), *_outside_assets(site)]
    if problems:
        raise PluginError("\n".join(problems))


# ------------------------------------------------------------------------------ links


def _relinked(text: str, source: str, uri: str) -> str:
    def change(found: re.Match[str]) -> str:
        start, target, anchor, end = found.groups()
        if not target or ":" in target:
            return found.group()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        page, own_anchor = _page_of(path)
        if page is None:
            _log.warning("%s links to %s, which is no page of this site", source, path)
            return found.group()
        relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
        return f"{start}{relative}{anchor or own_anchor}{end}"

    return _LINK.sub(change, text)


def _page_of(path: str) -> tuple[str | None, str]:
    """The page that shows a file of the repository, and the anchor in it."""
    if path in _ROOT_PAGES:
        return _ROOT_PAGES[path], ""
    if path.startswith("docs/"):
        return path.removeprefix("docs/"), ""
    if path == ".env.example":
        return "deploy.md", f"#{_anchor(path)}"
    folder, _, rest = path.partition("/")
    if folder in _SOURCE_PAGES and (ROOT / path).exists():
        return _SOURCE_PAGES[folder], f"#{_anchor(rest)}" if rest else ""
    if folder == "reference" or path in {"commands.md", "examples.md", "deploy.md"}:
        return path, ""
    return None, ""


def _anchor(path: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", path.lower()).strip("-")


# ------------------------------------------------------------------------------ pages


def _reference_uri(module: PublicModule) -> str:
    return f"reference/{module.name}.md"


def _short(module: PublicModule) -> str:
    """The name of a module without that of the package."""
    return module.name.removeprefix(f"{PACKAGE}.")


def _reference_index() -> str:
    rows = "\n".join(
        f"| [`{module.name}`]({module.name}.md) | {module.summary} |" for module in _modules
    )
    return (
        "# Reference\n\nEvery public name, from its docstring. Durations are seconds. What is not "
        "listed here is internal and may change with any release.\n\n"
        f"| module | subject |\n|---|---|\n{rows}\n\n"
        "See also the [command line](../docs/commands.md), "
        "[all settings](../docs/variables.md), [metrics](../docs/observability.md#metrics) and "
        "[the schema of the settings](../docs/settings.schema.json).\n"
    ).replace("../docs/", "../")


def _reference_page(module: PublicModule) -> str:
    depth = 2
    parts = [
        f"# `{module.name}`\n\n::: {module.name}\n",
        _options(1, "members: []", "show_root_heading: false", "show_root_toc_entry: false"),
    ]
    for group in module.groups:
        if group.heading:
            parts.append(f"\n## {group.heading}\n")
        level = depth + bool(group.heading)
        for name in group.names:
            parts += [f"\n::: {module.path(name)}\n", _options(level)]
    return "".join(parts)


def _options(level: int, *more: str) -> str:
    lines = [f"heading_level: {level}", *more]
    return "    options:\n" + "".join(f"      {line}\n" for line in lines)


def _examples_page() -> str:
    parts = ["# Examples\n\nEach runs by itself, without a key and without a network.\n"]
    for path in sorted((ROOT / "examples").glob("*.py")):
        parts += [_shown(path, path.relative_to(ROOT / "examples"))]
    return "\n".join(parts)


def _deploy_page() -> str:
    parts = [
        "# Files for deployment\n",
        "Settings to copy; an image, Compose, Kubernetes, alert rules and dashboards (`deploy`).\n",
        _shown(ROOT / ".env.example", Path(".env.example"), "sh"),
    ]
    folder = ROOT / "deploy"
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir():
            parts.append(f"## `{relative}/` {{ #{_anchor(str(relative))} }}\n")
        elif path.name != ".env":
            parts.append(_shown(path, relative))
    return "\n".join(parts)


def _shown(path: Path, relative: Path, language: str = "") -> str:
    text = path.read_text("utf-8")
    level = "##" if relative.parent == Path() else "###"
    heading = f"{level} `{relative}` {{ #{_anchor(str(relative))} }}\n"
    if len(text) > _LARGEST:
        return f"{heading}\n{len(text) // 1000} kB: see the file in the repository.\n"
    language = language or _LANGUAGES.get(path.suffix, "text")
    return f"{heading}\n```{language}\n{text.rstrip()}\n```\n"


# ------------------------------------------------------------------------------ after the build


def _llms_txt(config: MkDocsConfig) -> str:
    """The list of pages for language models (https://llmstxt.org)."""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for title, uri in _entries(config.nav or []):
        if uri is None:
            lines += ["", f"## {title}", ""]
        else:
            target = uri.replace(".md", ".html") if uri.startswith("reference/") else uri
            lines.append(f"- [{title}]({target}): {_summary(_markdown[uri])}")
    return "\n".join(lines) + "\n"


def _entries(nav: list[Any], *, top: bool = True) -> Iterator[tuple[str, str | None]]:
    for entry in nav:
        named = entry if isinstance(entry, dict) else {"All modules": entry}
        for title, inner in named.items():
            if isinstance(inner, str):
                if top:
                    yield title, None
                yield title, inner
            else:
                if top:
                    yield title, None
                yield from _entries(inner, top=False)


def _summary(markdown: str) -> str:
    """The first sentence of a page."""
    for paragraph in _FENCE.sub("", markdown).split("\n\n"):
        text = " ".join(paragraph.split())
        if text and text[0] not in "#<|!:-[":
            text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
            return re.split(r"(?<=[.:。])(?:\s|$)|(?<=。)", text)[0].rstrip(":")
    name = re.search(r"^# `(.+)`", markdown)
    return next((m.summary for m in _modules if name and m.name == name[1]), "")


def _missing_names(site: Path) -> Iterator[str]:
    for module in _modules:
        page = (site / _reference_uri(module)).with_suffix(".html").read_text("utf-8")
        for name in module.names:
            if f'id="{module.path(name)}"' not in page:
                yield f"The reference has no entry for {module.name}.{name}"


class _Assets(HTMLParser):
    """Collects what a browser would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Look at what loads by itself; a link to click on is none."""
        given = dict(attrs)
        if tag == "a" or (tag == "link" and given.get("rel") in {"canonical", "prev", "next"}):
            return
        for name in ("src", "href", "srcset"):
            if (given.get(name) or "").startswith(("http:", "https:", "//")):
                self.found.add(f"<{tag} {name}={given[name]}>")


def _outside_assets(site: Path) -> Iterator[str]:
    parser = _Assets()
    for path in site.rglob("*.html"):
        parser.feed(path.read_text("utf-8"))
    yield from (f"A page loads {each}" for each in sorted(parser.found))
    for path in site.rglob("*.css"):
        for url in re.findall(r"url\(['\"]?((?:https?:)?//[^)]+)", path.read_text("utf-8")):
            yield f"{path.relative_to(site)} loads {url}"
