"""``[objective]``: what the error is measured against, and how much each noise level counts. The defaults are plain DDPM, or a
plain rectified flow."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from ..setting import setting
from .section import Section

Prediction = Literal["auto", "epsilon", "v-prediction", "flow"]
ZeroTerminal = Literal["auto", "on", "off"]
Loss = Literal["l2", "huber", "smooth_l1"]
HuberSchedule = Literal["constant", "exponential", "snr"]
TimestepSampling = Literal["uniform", "logit-normal", "cosmap"]


class ObjectiveSection(Section):
    """Prediction target, loss, noise and timesteps."""

    prediction: Prediction = setting(
        "auto",
        "What the checkpoint predicts. auto reads it from the file. Set v-prediction for such a model that looks grey or burnt, and flow "
        "for an SDXL rectified flow, such as NoobAI RF.",
        details="`epsilon` is the noise. No SDXL file says that it is a rectified flow, so `flow` has to be set: "
        "see [Rectified flow](#rectified-flow).",
        why="Markers, metadata or configuration of the checkpoint declare it.",
    )
    zero_terminal_snr: ZeroTerminal = setting(
        "auto",
        "Whether training includes pure noise, as for NoobAI's v-prediction models. auto reads it from the file.",
        details="Zero terminal SNR: the last timestep is pure noise.",
        why="The checkpoint declares it; only v-prediction models have it.",
    )
    min_snr_gamma: float = setting(
        0.0,
        "Balances how much each noise level counts; with 5 a style is often learned faster (min-SNR). 0 is off.",
        details="Min-SNR weighting (Hang et al. 2023); `5` is the paper's value.",
        why="Plain DDPM, as in pretraining.",
        ge=0,
        le=1000,
    )
    debiased: bool = setting(
        False,
        "Another way to balance noise levels (debiased estimation). Use either this or min_snr_gamma.",
        why="Plain DDPM, as in pretraining.",
    )
    loss: Loss = setting(
        "l2",
        "How errors are measured. l2 is the standard; huber and smooth_l1 are more tolerant of odd images.",
        why="The model was pretrained with it.",
    )
    huber_c: float = setting(
        0.1,
        "With loss huber or smooth_l1: the error from which they become tolerant. Smaller values tolerate more.",
        details="The point at which they turn from squared to absolute error.",
        why="kohya's default.",
        gt=0,
        le=10,
    )
    huber_schedule: HuberSchedule = setting(
        "snr",
        "With loss huber or smooth_l1: more tolerant at high noise (snr, exponential), or equally everywhere (constant).",
        why="kohya's default.",
    )
    noise_offset: float = setting(
        0.0,
        "Lets the LoRA learn very dark and very bright images; try 0.05. 0 is off.",
        why="Plain noise, as in pretraining; it cannot change an image's overall brightness.",
        ge=0,
        le=1,
    )
    multires_iterations: int = setting(
        0,
        "Adds noise of several sizes, for a wider range of light and dark; 6 is usual. 0 is off.",
        details="Multi-resolution noise, an alternative to `noise_offset`; 6 to 10 are usual.",
        why="Plain noise, as in pretraining.",
        ge=0,
        le=16,
    )
    multires_discount: float = setting(
        0.3,
        "With multires_iterations: how much weaker each coarser layer of noise is.",
        why="The value usually given with 6 to 10 iterations.",
        ge=0,
        le=1,
    )
    input_perturbation: float = setting(
        0.0,
        "Adds a little extra noise to the input, for steadier results; try 0.1. 0 is off.",
        details="The target is unchanged. `0.1` is the paper's value (Ning et al. 2023).",
        why="Plain DDPM, as in pretraining.",
        ge=0,
        le=1,
    )
    timestep_min: int = setting(
        0,
        "Lowest noise level to train, where 0 is a clean image. Raise it to leave fine detail unchanged.",
        why="All timesteps, as in pretraining.",
        ge=0,
        le=999,
    )
    timestep_max: int = setting(
        1000,
        "Highest noise level to train, where 1000 is pure noise. Lower it to leave composition unchanged.",
        details="Exclusive.",
        why="All timesteps, as in pretraining.",
        ge=1,
        le=1000,
    )
    timestep_sampling: TimestepSampling = setting(
        "uniform",
        "Trains all noise levels equally often (uniform), or the middle ones more (logit-normal; for rectified flows also cosmap).",
        details="`cosmap` is the other density of Stable Diffusion 3's paper.",
        why="As in pretraining.",
    )
    logit_mean: float = setting(
        0.0,
        "With timestep_sampling logit-normal: above 0 trains composition more, below 0 trains detail more.",
        why="Centred on the middle noise levels.",
        ge=-10,
        le=10,
    )
    logit_std: float = setting(
        1.0,
        "With timestep_sampling logit-normal: how far it spreads from the middle. Larger is more even.",
        details="Other trainers call it the sigmoid scale.",
        why="The value of Stable Diffusion 3's paper.",
        gt=0,
        le=10,
    )
    timestep_shift: float = setting(
        1.0,
        "For rectified flows: above 1 trains high noise (composition) more, below 1 detail. 1 is off.",
        details="A noise level t becomes s·t / (1 + (s − 1)·t), whatever `timestep_sampling` draws.",
        why="Trains detail and composition alike; see [Rectified flow](#rectified-flow).",
        gt=0,
        le=100,
    )
    resolution_shift: bool = setting(
        False,
        "For rectified flows: trains large images at higher noise and small ones at lower noise.",
        details="Multiplies the shift by the square root of the image's pixels relative to 1024 × 1024 (Esser et al. 2024, section 5.3.2).",
        why="All images alike; it matters where sizes differ much.",
    )

    @model_validator(mode="after")
    def _options_fit_each_other(self) -> ObjectiveSection:
        if self.min_snr_gamma and self.debiased:
            raise ValueError("min_snr_gamma and debiased both weigh the noise levels: use only one of them")
        if self.prediction == "epsilon" and self.zero_terminal_snr == "on":
            raise ValueError("with zero_terminal_snr the last timestep is pure noise, where a model that predicts noise learns nothing")
        if self.timestep_min >= self.timestep_max:
            raise ValueError(f"timestep_min {self.timestep_min} is not below timestep_max {self.timestep_max}")
        return self
