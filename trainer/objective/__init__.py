"""Noise, timesteps, targets, weighting and loss."""
