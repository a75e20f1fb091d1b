"""The ComfyUI face of the pack: schemas, calls and results. Nothing else in the repository imports ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .anime_img2img import AnimeImg2Img
from .combine_datasets import CombineDatasets
from .dataset_options import DatasetOptionsNode
from .dataset_prep import DatasetPrep
from .demo_pictures import DemoPictures
from .epoch_compare import EpochCompare
from .export_lora import ExportLora
from .learning_options import LearningOptionsNode
from .load_demo_base import LoadDemoBase
from .load_lora import LoadLora
from .lora_stack import LoraStack
from .machine_options import MachineOptionsNode
from .monitor_options import MonitorOptionsNode
from .network_options import NetworkOptionsNode
from .pick_epoch import PickEpoch
from .shared.history.history_routes import register as register_history
from .shared.inputs.menus import with_menus_checked
from .shared.routes import register
from .style_compare import StyleCompare
from .train_lora import TrainLora
from .train_options import TrainOptionsNode

NODES: list[type[io.ComfyNode]] = [
    DatasetPrep,
    DatasetOptionsNode,
    CombineDatasets,
    TrainLora,
    TrainOptionsNode,
    NetworkOptionsNode,
    LearningOptionsNode,
    MachineOptionsNode,
    MonitorOptionsNode,
    LoadLora,
    LoraStack,
    AnimeImg2Img,
    StyleCompare,
    EpochCompare,
    PickEpoch,
    ExportLora,
    LoadDemoBase,
    DemoPictures,
]


COLLECTING = [TrainOptionsNode, NetworkOptionsNode, LearningOptionsNode, MachineOptionsNode, MonitorOptionsNode, CombineDatasets]
"""The nodes before Train LoRA that only collect settings and datasets, and may be called before a run."""


class AnimeLoRAExtension(ComfyExtension):
    """Hands the nodes to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack. The panel's routes are added here, as ComfyUI 0.3.64 calls nothing else of an extension."""
        register(TrainLora, COLLECTING)
        register_history(TrainLora, COLLECTING)
        return [with_menus_checked(node) for node in NODES]
