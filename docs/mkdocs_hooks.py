"""MkDocs hooks: list the decision records, add the OpenAPI document and Redoc, and turn links to code into paths."""

import json
import re
from pathlib import Path

import fastapi_offline
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from services.api.app import create_app
from shared.settings import Settings

REDOC = Path(fastapi_offline.__file__).parent / "static" / "redoc.standalone.js"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds every decision record to the navigation."""
    docs = Path(config.docs_dir)
    records = sorted(file.relative_to(docs).as_posix() for file in (docs / "decisions").glob("[0-9]*.md"))
    config.nav = [*(config.nav or []), {"Decisions": ["decisions/index.md", *records]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    document = json.dumps(create_app(Settings()).openapi(), indent=2)
    files.append(File.generated(config, "reference/openapi.json", content=document))
    files.append(File.generated(config, "reference/redoc.standalone.js", abs_src_path=str(REDOC)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces each link to a file outside the documentation by the file's path, because the site does not hold it."""
    docs = Path(config.docs_dir).resolve()
    folder = (docs / page.file.src_uri).parent

    def path_instead_of_link(link: re.Match[str]) -> str:
        text, target = link[1], link[2]
        file = (docs.parent / target[1:] if target.startswith("/") else folder / target).resolve()
        if file.is_relative_to(docs):
            return link[0]
        if not file.exists():
            raise PluginError(f"{page.file.src_uri} links to {target}, which does not exist")
        path = f"`{file.relative_to(docs.parent)}`"
        return path if text.strip("`") == path.strip("`") else f"{text} ({path})"

    return LINK.sub(path_instead_of_link, markdown)
