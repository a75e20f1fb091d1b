"""Training of text encoders equals that of an independent trainer: diffusers, transformers and PEFT, in fp32 on the CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from random_checkpoints.make_checkpoint import make_empty_checkpoint
from tests.tools.comfyui import ComfyUI
from tests.tools.parameters import mark_long
from tests.unit.lorafile.helpers import key_table
from tests.unit.lorafile.other_programs.in_comfyui import comfy_key, load_in_comfyui
from tests.unit.training.parity.plain_recipe import distance, is_linear_or_1x1
from tests.unit.training.text_encoder_settings import CPU, QUICK, of_text
from tests.unit.training_helpers import Trained, apart, configuration, make_dataset, train_here
from trainer.adapters import adapter
from trainer.adapters.text_adapters import adapt_text
from trainer.config.run_config import RunConfig
from trainer.config.sections.optimizer import OptimizerSection
from trainer.core import seeding
from trainer.dataset import open_dataset
from trainer.dataset.loading import batch_order
from trainer.families import family_of, open_checkpoint
from trainer.families.stable_diffusion.clip_text import tokenizer_folder
from trainer.lorafile import inspect_lora, read_lora
from trainer.objective.choose import choose_prediction, make_noise_process
from trainer.runs.run_folder import cache_folder
from trainer.training.caching.cache import Cache
from trainer.training.micro_batch import MicroBatch, build_micro_batch
from trainer.training.optimizers import text_learning_rate

pytestmark = pytest.mark.seconds
STEPS = 10
RATES = (1e-3, 2e-4)  # of the UNet and of the text encoders
LIMIT = 0.02  # below the first gradients' norm, so that clipping matters
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@dataclass
class Plain:
    """What the plain trainer saw."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    first_gradients: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


def drawn(run: RunConfig) -> list[list[MicroBatch]]:
    """The micro-batches of every step, with captions in place of conditionings."""
    dataset, checkpoint = open_dataset(Path(run.dataset.path)), open_checkpoint(run.base.checkpoint)
    cache = Cache(cache_folder(run), checkpoint.identity(), family_of(checkpoint).latents)
    process = make_noise_process(family_of(checkpoint), choose_prediction(family_of(checkpoint), checkpoint, run.objective))
    sizes, repeats = [(item.width, item.height) for item in dataset.items], [item.repeats for item in dataset.items]
    steps = []
    for epoch in range(run.training.epochs):
        batches = batch_order.epoch_batches(sizes, repeats, run.training.batch_size, seed=run.training.seed, epoch=epoch)
        for group in batch_order.group(batches, run.training.gradient_accumulation):
            where: dict[str, Any] = {"seed": run.training.seed, "epoch": epoch, "process": process, "tokenize": lambda caption: caption}
            steps.append([build_micro_batch(slots, dataset, cache, run.objective, **where) for slots in group])
    return steps


def standard(name: str) -> str:
    """A peft parameter's name as the trainer has it."""
    module, _, kind = name.partition(".lora_")
    component, _, inside = module.partition(".")
    if component == "unet":
        module = inside
    elif not inside.startswith("text_model."):
        module = f"{component}.text_model.{inside}"
    return f"{module}.{'down' if kind.startswith('A') else 'up'}"


def plain_models(run: RunConfig) -> tuple[dict[str, Any], dict[str, torch.nn.Parameter]]:
    """The UNet and text models with peft's adapters, put in by diffusers and transformers; and the parameters that are trained."""
    checkpoint = open_checkpoint(run.base.checkpoint)
    family = family_of(checkpoint)
    unet: Any = family.load_denoiser(checkpoint, torch.float32)
    kohya = [name for name, module in unet.named_modules() if ".attentions." in name and is_linear_or_1x1(module)]
    models = {"unet": unet, **family.load_text_encoder(checkpoint, torch.float32, CPU).modules}
    sizes = {"r": run.network.rank, "lora_alpha": run.network.alpha}
    unet.add_adapter(LoraConfig(**sizes, target_modules=kohya))
    for component, model in models.items():
        if component != "unet":
            get_peft_model(model, LoraConfig(**sizes, target_modules=CLIP))  # in place
    trained = {
        standard(f"{component}.{name}"): parameter
        for component, model in models.items()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }
    again: Any = family.load_denoiser(checkpoint, torch.float32)
    adapter.inject(
        again, kohya, rank=run.network.rank, alpha=run.network.alpha, seed=seeding.derive_seed(run.training.seed, "weights") % 2**32
    )
    text = family.load_text_encoder(checkpoint, torch.float32, CPU)
    adapt_text(text, family, run, run.training.seed)
    start = adapter.state(adapter.as_one_model(again, text.modules))
    assert list(start) == list(trained)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(start[name])
            parameter.requires_grad_(True)
    return models, trained


def plain_conditions(models: dict[str, Any], captions: list[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Context and pooled prompt: CLIP's last states on SD 1.x; both encoders' last but one layer, without the final norm, on SDXL."""
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder()), local_files_only=True)
    rows = [tokenizer(caption).input_ids for caption in captions]

    def padded(filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (77 - len(row)) for row in rows])

    if "te2" not in models:
        return models["te1"](padded(49407)).last_hidden_state, None
    first = models["te1"](padded(49407), output_hidden_states=True)
    second = models["te2"](padded(0), output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds


def train_plainly(run: RunConfig, steps: list[list[MicroBatch]]) -> Plain:
    """diffusers' recipe with its text encoders trained too."""
    models, trained = plain_models(run)
    for model in models.values():
        model.train()
    in_unet = [parameter for name, parameter in trained.items() if not name.startswith("te")]
    in_text = [parameter for name, parameter in trained.items() if name.startswith("te")]
    groups = [{"params": in_unet, "lr": RATES[0]}, {"params": in_text, "lr": RATES[1]}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
    seen = Plain()
    for group in steps:
        total = 0.0
        for batch in group:
            noisy = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
            context, pooled = plain_conditions(models, batch.conditions)
            extra: dict[str, Any] = {}
            if pooled is not None:
                ids = [[*one.original[::-1], *one.crop_top_left, *one.target[::-1]] for one in batch.framings]
                extra = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": torch.tensor(ids, dtype=torch.float32)}}
            predicted = models["unet"](noisy, batch.timesteps, context, **extra).sample
            loss = torch.nn.functional.mse_loss(predicted, batch.noise) / len(group)
            loss.backward()
            total += float(loss.detach())
        if not seen.losses:
            seen.first_gradients = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
        seen.norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), LIMIT)))
        optimizer.step()
        optimizer.zero_grad()
        seen.losses.append(total)
    seen.moments = {name: optimizer.state[p]["exp_avg"] for name, p in trained.items() if p in optimizer.state}
    seen.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
    return seen


@pytest.fixture(scope="module", params=mark_long(["sd1", "sdxl"], "sdxl"))
def both(
    request: pytest.FixtureRequest, shallow_checkpoint: Path, shallow_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Trained, Plain]:
    """The same ten steps by the trainer and by the plain recipe."""
    checkpoint = {"sd1": shallow_checkpoint, "sdxl": shallow_sdxl}[request.param]
    changes = {
        "network.text_encoder": True, "training.epochs": 5, "training.gradient_accumulation": 2, "optimizer.lr": RATES[0],
        "optimizer.text_encoder_lr": RATES[1], "optimizer.max_grad_norm": LIMIT, "training.checkpoint_every": 1,
    }  # fmt: skip
    folder = tmp_path_factory.mktemp(f"text-{request.param}")
    run = configuration(checkpoint, make_dataset(folder, 3, resolution=128), folder / "runs", changes)
    ours = train_here(run)
    assert ours.status == 0, ours.told[-1]
    return request.param, ours, train_plainly(run, drawn(run))


def moments(ours: Trained, step: int) -> dict[str, torch.Tensor]:
    """AdamW's first moments after ``step``, by the trainer's names."""
    state = ours.state(step)
    numbers = [number for group in state["optimizer"]["param_groups"] for number in group["params"]]
    found = state["optimizer"]["state"]
    return {name: found[number]["exp_avg"] for name, number in zip(state["lora"], numbers, strict=True) if number in found}


def test_losses_and_gradient_norms_are_those_of_the_plain_recipe(both: tuple[str, Trained, Plain]) -> None:
    _, ours, plain = both
    assert len(plain.losses) == STEPS
    assert [step.loss for step in ours.steps] == pytest.approx(plain.losses, rel=1e-4)
    assert [step.grad_norm for step in ours.steps] == pytest.approx(plain.norms, rel=2e-3)


def test_the_gradients_of_one_step_are_those_of_the_plain_recipe(both: tuple[str, Trained, Plain]) -> None:
    _, ours, plain = both
    # after one step the first moment is a tenth of the clipped gradient (Kingma & Ba 2015)
    scale = 0.1 * min(1.0, LIMIT / (plain.norms[0] + 1e-6))
    first = {name: moment / scale for name, moment in moments(ours, 1).items()}
    assert apart(first, plain.first_gradients) < 1e-3
    assert apart(of_text(first), of_text(plain.first_gradients)) < 1e-3
    assert any(float(value.abs().max()) > 1e-6 for name, value in of_text(first).items() if name.endswith(".up"))


def test_ten_updates_are_those_of_the_plain_recipe(both: tuple[str, Trained, Plain]) -> None:
    family, ours, plain = both
    seen = moments(ours, STEPS)
    assert apart(seen, plain.moments) < 3e-3
    final = ours.state(STEPS)["lora"]
    assert distance(final, plain.weights) < 3e-3
    assert distance(of_text(final), of_text(plain.weights)) < 3e-3
    # all but the layer after the one that SDXL's first encoder is used up to
    idle = {name for name in final if name not in seen}
    assert idle == {name for name in final if family == "sdxl" and name.startswith("te1.text_model.encoder.layers.1.")}


def test_the_text_encoder_has_its_own_learning_rate(both: tuple[str, Trained, Plain]) -> None:
    _, ours, _ = both
    groups = ours.state(STEPS)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == list(RATES)
    names = iter(ours.state(STEPS)["lora"])
    for group, text in zip(groups, (False, True), strict=True):
        assert all(next(names).startswith("te") == text for _ in group["params"])
    automatic = OptimizerSection(lr=1e-4)
    assert text_learning_rate(automatic, 1e-4) == 5e-5
    assert text_learning_rate(OptimizerSection(name="prodigy", lr=1.0), 1.0) == 1.0


def test_the_file_has_kohya_s_keys_for_every_layer(both: tuple[str, Trained, Plain]) -> None:
    family, ours, _ = both
    written = {key for key in load_file(str(ours.run.lora)) if key.startswith("lora_te")}
    real = {key for key in key_table("sd15" if family == "sd1" else "sdxl") if key.startswith("lora_te")}
    two_layers = {key for key in real if "_layers_0_" in key or "_layers_1_" in key}
    if family == "sdxl":  # the table of a real file has the first encoder only; the second has the same layers
        two_layers |= {key.replace("lora_te1_", "lora_te2_") for key in two_layers}
    assert written == two_layers
    information = inspect_lora(ours.run.lora)
    assert information.usable and not information.unknown_keys
    expected = {"te1": 12} if family == "sd1" else {"te1": 12, "te2": 12}
    assert {name: count for name, count in information.targets.items() if name != "unet"} == expected


def test_the_metadata_names_the_trained_parts(both: tuple[str, Trained, Plain], shallow_checkpoint: Path, tmp_path: Path) -> None:
    _, ours, _ = both

    def metadata(path: Path) -> Any:
        with safe_open(str(path), "pt") as file:
            return file.metadata()

    told = metadata(ours.run.lora)
    assert (float(told["ss_unet_lr"]), float(told["ss_text_encoder_lr"])) == RATES
    assert (told["ss_network_train_unet_only"], told["ss_network_train_text_encoder_only"]) == ("False", "False")
    assert (told["ss_clip_skip"], told["ss_max_token_length"]) == ("None", "None")
    folder = make_dataset(tmp_path, 1)
    changes = {"network.unet": False, "training.clip_skip": 2, "training.max_tokens": 150, "training.max_steps": 1}
    alone = metadata(train_here(configuration(shallow_checkpoint, folder, tmp_path / "a", {**QUICK, **changes})).run.lora)
    assert (alone["ss_unet_lr"], float(alone["ss_text_encoder_lr"])) == ("None", 0.01)
    assert (alone["ss_network_train_unet_only"], alone["ss_network_train_text_encoder_only"]) == ("False", "True")
    assert (alone["ss_clip_skip"], alone["modelspec.encoder_layer"], alone["ss_max_token_length"]) == ("2", "2", "150")


@pytest.mark.comfyui
def test_comfyui_uses_every_key_and_computes_the_changes(both: tuple[str, Trained, Plain], comfyui: ComfyUI, tmp_path: Path) -> None:
    family, ours, _ = both
    state = ours.state(STEPS)["lora"]
    # scale alpha / rank of the quick settings
    changes = {name[:-3]: state[name] @ state[f"{name[:-3]}.down"] * (2.0 / 4) for name in of_text(state) if name.endswith(".up")}
    layers = {}
    for module in (name.rstrip(".") for name in changes):
        component, _, inside = module.partition(".")
        layers[module] = comfy_key(family, component, inside)
    shapes = {layers[name.rstrip(".")]: list(change.shape) for name, change in changes.items()}
    job: dict[str, Any] = {"lora": str(ours.run.lora), "result": str(tmp_path / "out.safetensors")}
    job |= {"layers": list(layers.values()), "shapes": shapes}
    (result,) = load_in_comfyui(comfyui, tmp_path, family, [job])
    assert result["left"] == []
    assert set(layers.values()) <= set(result["patched"])
    assert len(result["patched"]) == len(read_lora(ours.run.lora).modules)
    applied = load_file(job["result"])
    for name, change in changes.items():
        given = applied[layers[name.rstrip(".")]]
        # the file is in fp16, which keeps eleven bits of each factor
        torch.testing.assert_close(given, change, rtol=5e-3, atol=2e-3 * float(change.abs().max()) + 1e-9)


@pytest.mark.parametrize(("size", "modules"), [("full", {"te1": 72}), ("full-sdxl", {"te1": 72, "te2": 192})])
def test_the_modules_of_the_real_sizes_are_kohya_s(tmp_path: Path, size: str, modules: dict[str, int]) -> None:
    checkpoint = open_checkpoint(str(make_empty_checkpoint(tmp_path / "empty.safetensors", size)))
    family = family_of(checkpoint)
    text = family.empty_text_encoder(checkpoint)
    assert {name: len(family.text_targets(model, "all-linear")) for name, model in text.modules.items()} == modules
    assert {name: len(family.text_targets(model, "attention")) for name, model in text.modules.items()} == {
        name: count * 4 // 6 for name, count in modules.items()
    }
