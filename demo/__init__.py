"""A small Stable Diffusion made for this pack: drawn portraits, the recipe that trains it, and the demonstration.

The node Demo Pictures draws its portraits with this package. Heavy imports (torch, diffusers) happen inside functions,
so that drawing portraits needs only Pillow and NumPy.
"""
