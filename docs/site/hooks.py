"""What the site has beside docs/: the README as its home page, the files that pages link to, the command line's page.

Pages link to files of the repository by relative paths, as a reader of the repository needs it. The site has no
repository beside it, so each file that some page links to becomes a page of the site, and the link goes there. A link
to what does not exist is left alone: mkdocs reports it, and a strict build fails.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

HOME = "index.md"
COMMANDS = "reference/cli.md"
BESIDE = "repository"  # pages made of files outside docs/
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
CODE = {".py": "python", ".sh": "bash", ".toml": "toml", ".yml": "yaml", ".jinja": "jinja", ".txt": "text", "": "text"}

_origin: dict[str, str] = {}  # path in the repository by the page's path in the site, where they differ


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the home page, the command line's page, and what pages link to, what these link to, and so on."""
    root = Path(config.config_file_path).parent
    _origin.clear()
    _origin[HOME] = "README.md"
    files.append(File.generated(config, HOME, content=(root / "README.md").read_text()))
    if (root / "src/coatcheck/cli.py").exists():
        files.append(File.generated(config, COMMANDS, content=commands(root)))
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        source = root / _repository_path(page)
        if source.suffix != ".md" or page == COMMANDS:
            continue
        for match in LINK.finditer(source.read_text()):
            found = _target(root, page, match[2])
            if found is None:
                continue
            uri, path = found
            if files.get_file_from_path(uri) is None:
                files.append(_made(config, root, uri, path))
                _origin[uri] = path
                waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ go to the pages that were made of their targets."""
    root = Path(config.config_file_path).parent
    here = page.file.src_uri
    if here == COMMANDS:
        return markdown

    def moved(match: re.Match[str]) -> str:
        found = _target(root, here, match[2])
        if found is None:
            return match[0]
        return f"{match[1]}{posixpath.relpath(found[0], posixpath.dirname(here) or '.')}{match[3] or ''}{match[4]}"

    return LINK.sub(moved, markdown)


def commands(root: Path) -> str:
    """The reference of the command line, by typer's own generator."""
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{os.environ.get('PYTHONPATH', '')}", "NO_COLOR": "1"}
    call = [sys.executable, "-m", "typer", "coatcheck.cli", "utils", "docs", "--name", "coatcheck"]
    call += ["--title", "Command line"]
    done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True, env=environment)
    return done.stdout.replace(f"{root / 'src'}/", "")


def _repository_path(page: str) -> str:
    return _origin.get(page, f"docs/{page}")


def _target(root: Path, page: str, link: str) -> tuple[str, str] | None:
    """(The target's path in the site, its path in the repository). None: outside the repository, or not there."""
    if re.match(r"[a-z]+:|/", link):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_repository_path(page)), link))
    if path.startswith("..") or not (root / path).exists():
        return None
    if path == "README.md":
        return HOME, path
    inside = PurePosixPath(path)
    if inside.parts[0] == "docs" and inside.suffix in (".md", ".svg", ".png"):
        return str(inside.relative_to("docs")), path
    if (root / path).is_dir():
        if (root / path / "README.md").exists():
            return _target(root, page, f"{link.rstrip('/')}/README.md")
        return f"{BESIDE}/{path}/files.md", path
    if inside.suffix in CODE:
        return f"{BESIDE}/{path}.md", path
    return f"{BESIDE}/{path}", path


def _made(config: MkDocsConfig, root: Path, uri: str, path: str) -> File:
    """A page of the site from a file or folder of the repository; of another kind of file, the file itself."""
    source = root / path
    if uri.endswith("/files.md"):
        names = sorted(one.name + "/" * one.is_dir() for one in source.iterdir() if one.name != "__pycache__")
        content = f"# {path}/\n\nThis folder of the repository has:\n\n" + "".join(f"- `{name}`\n" for name in names)
    elif source.suffix == ".md":
        content = source.read_text()
    elif source.suffix in CODE:
        content = f"# {path}\n\n~~~~~~ {{.{CODE[source.suffix]} linenums=1}}\n{source.read_text()}\n~~~~~~\n"
    else:
        return File.generated(config, uri, abs_src_path=str(source), inclusion=InclusionLevel.NOT_IN_NAV)
    if source.suffix != ".md":
        content = f"---\nsearch:\n  exclude: true\n---\n\n{content}"
    return File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV)
