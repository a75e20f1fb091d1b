"""Draws the example graphs in ``workflows/``: ``python -m tests.tools.workflows <address of a running ComfyUI>``."""
