"""The AnimeLoRA trainer: prepares datasets, trains LoRAs and exports them. Never imports ComfyUI."""

__version__ = "0.1.0"
