"""Noise processes, timesteps, targets, weighting and loss. May import families, config and core."""
