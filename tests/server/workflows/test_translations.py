"""The English node texts equal the schemas, and the server sends every language to the browser."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from tests.server.comfy_server import Server
from tests.tools.nodes.node_texts import LANGUAGES, help_page, node_texts
from tests.tools.workflows.object_info import inputs_of, options
from tests.tools.write_texts import output_label


@pytest.fixture(scope="session")
def nodes(server: Server) -> dict[str, Any]:
    """The server's description of our nodes."""
    return {name: info for name, info in server.get("/object_info").items() if name.startswith("AnimeLoRA_")}


def test_english_texts_equal_the_schemas(nodes: dict[str, Any]) -> None:
    english = node_texts("en")
    assert set(english) == set(nodes)
    for name, info in nodes.items():
        text = english[name]
        assert (text["display_name"], text["description"]) == (info["display_name"], info["description"])
        specs = inputs_of(info)
        assert set(text["inputs"]) == set(specs)
        for field, spec in specs.items():
            assert text["inputs"][field]["tooltip"] == options(spec)["tooltip"], (name, field)
        labels = [(label["name"], label["tooltip"]) for _, label in sorted(text["outputs"].items(), key=lambda item: int(item[0]))]
        assert labels == list(zip(map(output_label, info["output_name"]), info["output_tooltips"], strict=True))


def test_browser_gets_every_language(server: Server) -> None:
    served = server.get("/i18n")
    for language in LANGUAGES:
        assert served[language]["nodeDefs"] == node_texts(language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_help_pages_are_served_where_the_frontend_looks(server: Server, language: str) -> None:
    for node in node_texts(language):
        place = f"{node}.md" if language == "en" else f"{node}/{language}.md"
        answer = requests.get(f"{server.url}/extensions/animelora/docs/{place}", timeout=30)
        answer.encoding = "utf-8"
        assert answer.text == help_page(node, language)
