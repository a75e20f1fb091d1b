"""Labelled grids of images for the comparing nodes. May import loras, comfyui, files and inputs."""
