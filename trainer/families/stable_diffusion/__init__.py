"""What the families SD 1.x, SD 2.x and SDXL share: LDM layout, CLIP, VAE, markers. Imported by the families; may import checkpoints."""
