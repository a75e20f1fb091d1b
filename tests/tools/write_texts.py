"""Write every text that is made from settings and node schemas: ``python -m tests.tools.write_texts``.

- the tables of settings and presets in docs/training.md and docs/datasets.md
- the English node texts, locales/en/nodeDefs.json, from the nodes in a real ComfyUI
- titles, descriptions and tables of the help pages in web/docs, in every language; the translations come from locales/<language>

Translations themselves are written by hand in locales/<language>/nodeDefs.json; inputs without one are reported.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tests.tools.comfyui import find_comfyuis
from tests.tools.nodes.node_description import describe_nodes
from trainer.config import presets
from trainer.config.prepare_settings import PrepareSettings
from trainer.config.reference import settings_table
from trainer.config.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
TRANSLATIONS = ("ja", "vi", "zh")
DOCS: Mapping[str, type[BaseModel]] = {"docs/training.md": RunConfig, "docs/datasets.md": PrepareSettings}
_OPTIONAL = {"en": " (optional)", "ja": "（省略可）", "zh": "（可选）", "vi": " (không bắt buộc)"}
_OUTPUTS = {"lora": "LoRA", "samples": "validation images"}  # names of outputs that are not their ids with spaces for underscores
_WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def output_label(name: str) -> str:
    """The English label of an output."""
    return _OUTPUTS.get(name, name.replace("_", " "))


def generated_docs() -> dict[str, str]:
    """The documents with tables of settings, by path below the repository's root."""
    texts = {path: with_table((ROOT / path).read_text(encoding="utf-8"), "settings", settings_table(model)) for path, model in DOCS.items()}
    return {**texts, "docs/training.md": with_table(texts["docs/training.md"], "presets", presets.table())}


def with_table(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between its marks called ``name``."""
    before, mark, rest = text.partition(f"<!-- {name}: written by `python -m tests.tools.write_texts` -->")
    _, end, after = rest.partition(f"<!-- end of {name} -->")
    assert mark and end, f"no place for the table of {name}"
    return f"{before}{mark}\n\n{table}\n\n{end}{after}"


def generated_node_texts(nodes: Mapping[str, Any]) -> dict[str, str]:
    """English node texts and all help pages, by path, for ``nodes`` as ComfyUI describes them."""
    known = list(json.loads((ROOT / "locales/en/nodeDefs.json").read_text(encoding="utf-8")))
    names = sorted(nodes, key=lambda name: known.index(name) if name in known else len(known))  # new nodes go to the end
    english = {name: _english(nodes[name]) for name in names}
    result = {"locales/en/nodeDefs.json": _json(english)}
    for language in ("en", *TRANSLATIONS):
        texts = english
        if language != "en":
            path = f"locales/{language}/nodeDefs.json"
            texts = _in_order(json.loads((ROOT / path).read_text(encoding="utf-8")), english)
            result[path] = _json(texts)
        for name, info in nodes.items():
            page = f"web/docs/{name}.md" if language == "en" else f"web/docs/{name}/{language}.md"
            if name in texts:
                result[page] = _page((ROOT / page).read_text(encoding="utf-8"), info, texts[name], language)
    return result


def untranslated(nodes: Mapping[str, Any]) -> Iterator[str]:
    """Texts that a translation lacks."""
    english = {name: _english(info) for name, info in nodes.items()}
    for language in TRANSLATIONS:
        texts = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        yield from (f"{language}: {'.'.join(path)}" for path in _missing(english, texts))


def _english(info: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {name: {"name": options.get("display_name") or name, "tooltip": options["tooltip"]} for name, _, options, _ in _inputs(info)}
    names = [output_label(name) for name in info["output_name"]]
    outputs = zip(names, info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": {str(index): {"name": name, "tooltip": tooltip} for index, (name, tooltip) in enumerate(outputs)},
    }


def _inputs(info: Mapping[str, Any]) -> Iterator[tuple[str, Any, Mapping[str, Any], bool]]:
    """Name, type and options of every input, and whether it is optional."""
    for group in ("required", "optional"):
        for name, spec in info["input"].get(group, {}).items():
            yield name, spec[0], spec[1], group == "optional"


def _page(page: str, info: Mapping[str, Any], texts: Mapping[str, Any], language: str) -> str:
    """A help page with the node's title, description and tables; its tips stay."""
    _title, _description, rest = page.split("\n\n", 2)
    name = texts["display_name"].removesuffix(" (AnimeLoRA)")
    tips, inputs, outputs = re.split(r"(?<=\n)(?=\|.*\|\n\| ---)", rest)
    between = inputs[inputs.rindex("|\n") + 2 :]
    rows = [
        f"| {_label(item, texts['inputs'][item]['name'])}{_OPTIONAL[language] if optional and not _is_widget(kind, options) else ''} "
        f"| {texts['inputs'][item]['tooltip']} | {_default(options)} |"
        for item, kind, options, optional in _inputs(info)
    ]
    results = [
        f"| {_label(item, texts['outputs'][str(index)]['name'])} | {texts['outputs'][str(index)]['tooltip']} |"
        for index, item in enumerate(info["output_name"])
    ]
    tables = (_table(inputs, rows), between, _table(outputs, results))
    return f"# {name}\n\n{texts['description']}\n\n{tips}{''.join(tables)}"


def _table(old: str, rows: list[str]) -> str:
    """The two lines of the heading of a table with new ``rows``."""
    return "\n".join([*old.splitlines()[:2], *rows]) + "\n"


def _label(name: str, shown: str) -> str:
    return f"**{shown}**" if shown in (name, name.replace("_", " ")) or shown == "seed" else f"**{shown}** ({name})"


def _is_widget(kind: Any, options: Mapping[str, Any]) -> bool:
    return (isinstance(kind, list) or kind in _WIDGETS) and not options.get("forceInput")


def _default(options: Mapping[str, Any]) -> str:
    value = options.get("default", "")
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else " / ".join(str(value).splitlines())


def _in_order(texts: Any, english: Any) -> Any:
    """``texts`` in the order of ``english``, without what is no longer there."""
    if not isinstance(english, dict):
        return texts
    return {key: _in_order(texts[key], value) for key, value in english.items() if key in texts}


def _missing(english: Any, texts: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in english.items() if isinstance(english, dict) else ():
        if key not in texts:
            yield (*path, key)
        else:
            yield from _missing(value, texts[key], (*path, key))


def _json(texts: Any) -> str:
    return json.dumps(texts, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Write what differs, and report it."""
    texts = generated_docs()
    missing: list[str] = []
    found = find_comfyuis()
    if found:
        with tempfile.TemporaryDirectory() as base:
            nodes = describe_nodes(found[0], Path(base))["nodes"]
        if not nodes:
            print("ComfyUI could not load the pack; nothing is written. Start ComfyUI to see the reason.", file=sys.stderr)
            return 1
        missing = list(untranslated(nodes))
        if not missing:
            texts |= generated_node_texts(nodes)
    else:
        print("No ComfyUI was found: node texts and help pages stay as they are.", file=sys.stderr)
    for path, text in texts.items():
        if (ROOT / path).read_text(encoding="utf-8") != text:
            (ROOT / path).write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {path}")
    for text in missing:
        print(f"not translated: {text}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
