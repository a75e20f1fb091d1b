"""Stable Diffusion's noise schedule, with arguments as diffusers' schedulers name them."""

from __future__ import annotations

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
