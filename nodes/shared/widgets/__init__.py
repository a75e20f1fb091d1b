"""Which node shows which setting: one line per widget; everything else comes from the setting. Imports neither ComfyUI nor other nodes."""
