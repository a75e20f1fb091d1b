"""A small Stable Diffusion of our own: drawn portraits, the recipe that trains it, and the demonstration.

Nothing here is imported by the ComfyUI nodes. Heavy imports (torch, diffusers) happen inside functions,
so that drawing portraits needs only Pillow and NumPy.
"""

from __future__ import annotations
