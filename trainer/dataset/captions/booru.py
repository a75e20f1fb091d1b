"""Tags in the forms of image boards and their downloaders: separated by spaces, with underscores, in groups, with namespaces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

# groups of tags in their order in a caption; groups that are left out describe the file, not the image
_GROUPS = ("character", "copyright", "artist", "species", "general")
_TEXTS = ("caption", "text", "prompt", "description")
_LEFT_OUT = {"meta", "metadata", "invalid", "lore", "deprecated"}
# namespaces of Hydrus: tags of the image lose the namespace, tags of the file are left out
_NAMED = {"character", "series", "copyright", "creator", "artist", "species", "person", "clothing", "studio", "general"}
_FILE = {"title", "page", "chapter", "volume", "rating", "filename", "meta", "source", "system", "date", "url", "site", "booru", "md5"}
_COUNT = re.compile(r"(\d+\+?|multiple_)(girl|boy|other)s?|solo|no_humans")
_UNDERSCORED = re.compile(r"[^\W_]_[^\W_]|[^\W_]_\\?\(")
_SENTENCE = {
    "a", "an", "the", "of", "in", "on", "with", "and", "is", "are", "at", "to", "by", "for", "from", "her", "his", "their", "wearing",
    "has", "having", "who", "that", "this", "photo", "image", "drawing", "style",
}  # fmt: skip


def spaced(name: str) -> str:
    """``long_hair`` -> ``long hair``; emoticons such as ``>_<`` and ``o_o`` keep their underscore."""
    return name.replace("_", " ") if re.search(r"[^\W\d_]{2}", name) else name


def split_spaced(text: str, *, tags: bool = False) -> list[str] | None:
    """The tags of text such as ``1girl saber_(fate) blonde_hair``; None for text that is one tag or may be a sentence.

    ``tags``: the text consists of tags, so that one underscore suffices.
    """
    words = text.split()
    if "," in text or "\n" in text or len(words) < 2 or any(word.lower() in _SENTENCE for word in words):
        return None
    underscored = sum(_UNDERSCORED.search(word) is not None for word in words)
    known = any(_COUNT.fullmatch(word.lower()) for word in words)
    return words if underscored >= 2 or ((underscored or tags) and known) or (underscored and tags) else None


def caption_of_json(data: Any) -> list[str]:
    """The caption and tags in the JSON file of one image; empty when none are recognised.

    Recognised forms: lists of tags (Hydrus), tags with scores (waifuc), the tag groups of a board (gallery-dl: lists, or text with spaces
    between tags), and ``caption``, ``text`` or ``prompt`` beside them.
    """
    if isinstance(data, list):
        return _strings(data)
    if not isinstance(data, dict):
        return []
    tags = _grouped(data)
    if "category" in data and "subcategory" in data:
        return tags  # gallery-dl: caption, description and text are the artist's comment
    caption = next((data[key] for key in _TEXTS if isinstance(data.get(key), str) and data[key].strip()), "")
    return [part for part in (" ".join(caption.split()), *tags) if part]


def _grouped(data: dict[str, Any]) -> list[str]:
    """The tags of ``tag_string_character``, ``tags_character``, … or of ``{"tags": {"character": […]}}``, and tags without a group."""
    inside = data.get("tags")
    if isinstance(inside, dict) and any(isinstance(value, list) for value in inside.values()):
        groups, rest = inside, []
    else:
        groups = {group: data.get(f"tag_string_{group}", data.get(f"tags_{group}")) for group in (*_GROUPS, *_LEFT_OUT)}
        rest = _tags(inside) or _tags(data.get("tag_string"))
    order = [*_GROUPS, *(group for group in groups if group not in _GROUPS and group not in _LEFT_OUT)]
    tags = [tag for group in order for tag in _tags(groups.get(group))]
    known = {*tags, *(tag for group in _LEFT_OUT for tag in _tags(groups.get(group)))}
    return tags + [tag for tag in rest if tag not in known]


def _tags(value: Any) -> list[str]:
    if isinstance(value, str):
        return [tag for part in value.split(",") for tag in [" ".join(part.split())] if tag] if "," in value else value.split()
    if isinstance(value, list):
        return _strings(value)
    if isinstance(value, dict) and all(isinstance(score, (int, float)) for score in value.values()):
        return [str(tag) for tag in value]
    return []


def _strings(values: Sequence[Any]) -> list[str]:
    """The tags in a list of names or of objects with a name."""
    names = [value.get("name") or value.get("tag") if isinstance(value, dict) else value for value in values]
    return [tag for name in names if isinstance(name, str) for tag in [_without_namespace(" ".join(name.split()))] if tag]


def _without_namespace(tag: str) -> str:
    namespace, colon, name = tag.partition(":")
    if colon and namespace.lower() in _NAMED:
        return name.strip()
    return "" if colon and namespace.lower() in _FILE else tag
