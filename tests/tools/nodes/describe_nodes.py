"""Run by ComfyUI's own interpreter: loads the pack as ComfyUI does and prints each node's description for the browser as JSON.

python describe_nodes.py COMFYUI PACK BASE_DIRECTORY
"""

# ruff: noqa: E402 (ComfyUI wants its options set before its modules are imported, and those in this order)
from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

comfyui, pack, base = sys.argv[1:4]
sys.path.insert(0, comfyui)
sys.argv = [sys.argv[0], "--cpu", "--base-directory", base]

import comfy.options

comfy.options.enable_args_parsing()

importlib.import_module("utils.install_util")  # before nodes, which puts another folder named utils in front
importlib.import_module("server")
nodes: Any = importlib.import_module("nodes")  # ComfyUI's, not ours

before = set(sys.modules)
loaded = asyncio.run(nodes.load_custom_node(pack))
added = sorted(set(sys.modules) - before)
ours = {name: node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("AnimeLoRA_")}
print(
    "DESCRIPTION "
    + json.dumps(
        {
            "loaded": loaded,
            "nodes": {name: node.GET_NODE_INFO_V1() for name, node in ours.items()},
            "modules": added,
            "stateful": [name for name, node in ours.items() if node.__dict__.get("__init__")],
        }
    )
)
