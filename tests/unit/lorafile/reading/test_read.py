"""Files in every known naming are read into the same layers and numbers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.lorafile.helpers import lora_tensors, sd15_layers, small_layers
from trainer.core.errors import UserError
from trainer.lorafile import convert, inspect_lora, read_lora, scan_lora
from trainer.lorafile.algorithms.dora import apply_dora
from trainer.lorafile.naming.kohya_names import dotted

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def attention_pairs(layers: dict[str, tuple[int, int, bool]]) -> Pairs:
    """name -> (up, down) of the attention layers."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (torch.randn(out, 4, generator=generator) * 0.1, torch.randn(4, into, generator=generator) * 0.1)
        for name, (out, into, _) in layers.items()
        if ".attn" in name
    }


def written(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def keys_in(naming: str, pairs: Pairs) -> dict[str, torch.Tensor]:
    """The tensors of ``pairs`` in one naming, spelled as the program that writes it spells them."""
    result = {}
    for name, (up, down) in pairs.items():
        parent, layer = (name[: -len(".to_out.0")], "to_out") if name.endswith(".to_out.0") else name.rsplit(".", 1)
        ldm = name.replace("down_blocks.0.attentions.0", "input_blocks.1.1")
        up_key, down_key = {
            "kohya": (f"lora_unet_{name.replace('.', '_')}.lora_up.weight", f"lora_unet_{name.replace('.', '_')}.lora_down.weight"),
            "kohya-ldm": (f"lora_unet_{ldm.replace('.', '_')}.lora_up.weight", f"lora_unet_{ldm.replace('.', '_')}.lora_down.weight"),
            "simpletuner": (f"lycoris_{name.replace('.', '_')}.lora_up.weight", f"lycoris_{name.replace('.', '_')}.lora_down.weight"),
            "diffusers-old": (f"unet.{parent}.processor.{layer}_lora.up.weight", f"unet.{parent}.processor.{layer}_lora.down.weight"),
            "diffusers-oldest": (f"{parent}.processor.{layer}_lora.up.weight", f"{parent}.processor.{layer}_lora.down.weight"),
            "diffusers": (f"unet.{name}.lora.up.weight", f"unet.{name}.lora.down.weight"),
            "diffusers-linear": (f"unet.{name}.lora_linear_layer.up.weight", f"unet.{name}.lora_linear_layer.down.weight"),
            "diffusers-peft": (f"unet.{name}.lora_B.weight", f"unet.{name}.lora_A.weight"),
            "peft": (f"base_model.model.{name}.lora_B.weight", f"base_model.model.{name}.lora_A.weight"),
            "peft-named": (f"base_model.model.{name}.lora_B.default.weight", f"base_model.model.{name}.lora_A.default.weight"),
            "unet-peft": (f"unet.base_model.model.{name}.lora_B.weight", f"unet.base_model.model.{name}.lora_A.weight"),
            "comfyui": (f"diffusion_model.{ldm}.lora_up.weight", f"diffusion_model.{ldm}.lora_down.weight"),
            "onetrainer-comfy": (f"diffusion_model.{ldm}.lora_B.weight", f"diffusion_model.{ldm}.lora_A.weight"),
            "onetrainer-original": (f"{ldm}.lora_B.weight", f"{ldm}.lora_A.weight"),
            "onetrainer-internal": (f"unet.{name}.lora_up.weight", f"unet.{name}.lora_down.weight"),
        }[naming]
        result[up_key], result[down_key] = up, down
    return result


@pytest.mark.parametrize(
    ("naming", "form"),
    [
        ("kohya", "kohya"), ("kohya-ldm", "kohya"), ("simpletuner", "kohya"), ("diffusers-old", "diffusers-old"),
        ("diffusers-oldest", "diffusers-old"), ("diffusers", "diffusers"), ("diffusers-linear", "diffusers"), ("diffusers-peft", "peft"),
        ("peft", "peft"), ("peft-named", "peft"), ("unet-peft", "peft"), ("comfyui", "comfyui"), ("onetrainer-comfy", "peft"),
        ("onetrainer-original", "peft"), ("onetrainer-internal", "onetrainer"),
    ],
)  # fmt: skip
def test_naming_is_recognised(tmp_path: Path, naming: str, form: str) -> None:
    pairs = attention_pairs(small_layers())
    weights = read_lora(written(tmp_path / "x.safetensors", keys_in(naming, pairs)))
    assert weights.problems == ()
    assert weights.format == form
    assert weights.family == "sd1"
    assert {module.name for module in weights} == set(pairs)
    for module in weights:
        up, down = pairs[module.name]
        assert module.component == "unet"
        assert torch.equal(module.tensors["lora_up.weight"], up)
        assert torch.equal(module.tensors["lora_down.weight"], down)
        assert torch.allclose(module.delta(), up @ down)  # no alpha means scale 1


@pytest.mark.parametrize(
    "key",
    [
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
        "lora_te1_text_model_encoder_layers_3_self_attn_q_proj.lora_up.weight",
        "lora_te_encoder_layers_3_self_attn_q_proj.lora_up.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_linear_layer.up.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.to_q_lora.up.weight",
        "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_B.weight",
        "text_encoder.encoder.layers.3.self_attn.q_proj.lora_B.weight",
        "text_encoders.clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj.lora_up.weight",
        "base_model.model.text_model.encoder.layers.3.self_attn.q_proj.lora_B.default.weight",
        "clip_l.text_model.encoder.layers.3.self_attn.q_proj.lora_up.weight",
    ],
)
def test_text_encoder_key_is_recognised(tmp_path: Path, key: str) -> None:
    down = key.replace("lora_up", "lora_down").replace(".up.", ".down.").replace("lora_B", "lora_A")
    weights = read_lora(written(tmp_path / "x.safetensors", {key: torch.ones(768, 2), down: torch.ones(2, 768)}))
    assert [(m.component, m.name) for m in weights] == [("te1", "text_model.encoder.layers.3.self_attn.q_proj")]
    assert weights.family == "sd1"


def test_sdxl_text_encoders_are_distinguished(tmp_path: Path) -> None:
    tensors = {}
    for prefix, width in (("lora_te1", 768), ("lora_te2", 1280)):
        name = f"{prefix}_text_model_encoder_layers_0_mlp_fc2"
        tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"] = torch.ones(width, 2), torch.ones(2, 4 * width)
    weights = read_lora(written(tmp_path / "x.safetensors", tensors))
    assert sorted(module.component for module in weights) == ["te1", "te2"]
    assert weights.family == "sdxl"


def test_real_key_tables_are_read_completely(tmp_path: Path) -> None:
    from tests.unit.lorafile.helpers import key_table

    for table, family, count in (("sd15", "sd1", 264), ("sdxl", "sdxl", 794)):
        tensors = {key: torch.full(shape, 0.5, dtype=torch.float16) for key, (_, shape) in key_table(table).items() if "te2" not in key}
        info = inspect_lora(written(tmp_path / f"{table}.safetensors", tensors))
        assert (info.family, info.format, info.algorithm, info.problems) == (family, "kohya", "lora", ())
        assert sum(info.targets.values()) == count


def peft_model() -> torch.nn.Module:
    """A module tree with SD names that peft can wrap."""
    block = torch.nn.Module()
    for attention, width in (("attn1", 320), ("attn2", 768)):
        child = torch.nn.Module()
        child.to_q, child.to_k = torch.nn.Linear(320, 320), torch.nn.Linear(width, 320)
        setattr(block, attention, child)
    root = torch.nn.Module()
    root.down_blocks = torch.nn.ModuleList([torch.nn.Module()])
    root.down_blocks[0].attentions = torch.nn.ModuleList([torch.nn.Module()])
    root.down_blocks[0].attentions[0].transformer_blocks = torch.nn.ModuleList([block])
    return root


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_peft_folder_gives_same_weights_as_peft(tmp_path: Path, rslora: bool, dora: bool) -> None:
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["to_q", "to_k"], alpha_pattern={"attn2.to_k": 3}, use_rslora=rslora, use_dora=dora
    )
    model = peft.get_peft_model(peft_model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "magnitude" in name:
            parameter.data *= 1.1
    model.save_pretrained(tmp_path)
    weights = read_lora(tmp_path)
    assert weights.algorithm == ("dora" if dora else "lora")
    assert len(weights.modules) == 4
    layers = dict(model.named_modules())
    for module in weights:
        layer = layers[f"base_model.model.{module.name}"]
        assert torch.allclose(module.delta(), layer.get_delta_weight("default"), atol=1e-6)
        if dora:
            before = layer.base_layer.weight.detach().clone()
            ours = apply_dora(before, module.delta(), module.tensors["dora_scale"])
            layer.merge()
            assert torch.allclose(ours, layer.base_layer.weight, atol=1e-5)


def test_scale_in_diffusers_adapter_metadata_is_used(tmp_path: Path) -> None:
    pairs = attention_pairs(small_layers())
    settings = {"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {f"{BLOCK}.attn1.to_q": 2}}
    path = written(tmp_path / "x.safetensors", keys_in("diffusers-peft", pairs), {"lora_adapter_metadata": json.dumps(settings)})
    scales = {module.name: module.scale for module in read_lora(path)}
    assert scales.pop(f"{BLOCK}.attn1.to_q") == 0.5
    assert set(scales.values()) == {2.0}


@pytest.mark.parametrize(
    ("naming", "name", "scale"),
    [("kohya", "x", 1.0), ("diffusers", "x", 1.0), ("diffusers-peft", "x", 4.0), ("diffusers", "adapter_model", 4.0)],
)
def test_adapter_config_applies_only_to_peft_files(tmp_path: Path, naming: str, name: str, scale: float) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 4}), encoding="utf-8")
    pairs = attention_pairs(small_layers())
    weights = read_lora(written(tmp_path / f"{name}.safetensors", keys_in(naming, pairs)))
    assert {module.scale for module in weights} == {scale}
    assert any("adapter_config.json" in note for note in weights.notes) == (scale != 1.0)


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "x"}, {"lora_alpha": [1]}, {"lora_alpha": True}, {"lora_alpha": float("nan")}, {"lora_alpha": 10**400},
        {"lora_alpha": 8, "alpha_pattern": ["a"]}, {"lora_alpha": 8, "alpha_pattern": {"to_q": "q"}}, {"lora_alpha": 8, "use_rslora": "no"},
    ],
)  # fmt: skip
def test_invalid_adapter_configuration_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    pairs = keys_in("diffusers-peft", attention_pairs(small_layers()))
    path = written(tmp_path / "x.safetensors", pairs)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json has an invalid value: "):
        read_lora(path)
    (tmp_path / "adapter_config.json").unlink()
    written(path, pairs, {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})})
    with pytest.raises(UserError, match=r"adapter metadata has an invalid value: "):
        read_lora(path)


def test_adapter_configuration_with_huge_number_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", keys_in("diffusers-peft", attention_pairs(small_layers())))
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": ' + "1" * 5000 + "}", encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json is not a JSON object"):
        read_lora(path)


# --- files and weight changes of LyCORIS' own modules ---------------------------------------------------------------------------


def lycoris_file(
    path: Path, algorithm: str, convolution: bool, tucker: bool, dora: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, str]:
    """Write a file with one layer made by LyCORIS. Returns the original weight, an input, LyCORIS' output for it, and the layer's name.

    The output is compared and not ``get_diff_weight``, which applies the scale of LoHa and LoKr twice in LyCORIS 4.1.3.
    """
    pytest.importorskip("lycoris")
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    torch.manual_seed(0)
    name = "down_blocks.0.resnets.0.conv1" if convolution else f"{BLOCK}.attn2.to_k"
    layer: torch.nn.Conv2d | torch.nn.Linear
    layer = torch.nn.Conv2d(16, 24, 3, bias=False) if convolution else torch.nn.Linear(768, 320, bias=False)
    kinds: dict[str, Any] = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule, "lokr-full": LokrModule}
    options: dict[str, object] = (
        {"factor": 4} if algorithm == "lokr" else {"factor": 4, "full_matrix": True} if algorithm == "lokr-full" else {}
    )
    module = kinds[algorithm](
        "lora_unet_" + name.replace(".", "_"), layer, 1.0, lora_dim=4, alpha=2, use_tucker=tucker, weight_decompose=dora, **options
    )
    for parameter in module.parameters():
        if parameter.requires_grad and parameter.ndim > 1 and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.2)
    if dora:
        module.dora_scale.data *= 1.2
    module.eval()
    with torch.no_grad():
        image = torch.randn(2, 16, 6, 6) if convolution else torch.randn(3, 768)
        output = module(image)
        state = {f"{module.lora_name}.{key}": value.detach().clone() for key, value in module.custom_state_dict().items()}
    written(path, state)
    return layer.weight.detach(), image, output, name


@pytest.mark.parametrize("algorithm", ["locon", "loha", "lokr", "lokr-full"])
@pytest.mark.parametrize(
    ("convolution", "tucker", "dora"),
    [(False, False, False), (True, False, False), (True, True, False), (False, False, True), (True, False, True)],
)
def test_lycoris_files_give_same_output_as_lycoris(tmp_path: Path, algorithm: str, convolution: bool, tucker: bool, dora: bool) -> None:
    path = tmp_path / "x.safetensors"
    before, image, output, name = lycoris_file(path, algorithm, convolution, tucker, dora)
    weights = scan_lora(path)
    assert [module.name for module in weights] == [name]
    module = weights.modules[0]
    expected = {"locon": "lora", "loha": "loha"}.get(algorithm, "lokr")
    assert module.algorithm == expected and module.is_dora == dora
    delta = module.delta().reshape(before.shape)
    after = apply_dora(before, delta, module.tensors["dora_scale"]) if dora else before + delta
    ours = torch.nn.functional.conv2d(image, after) if convolution else torch.nn.functional.linear(image, after)
    assert not torch.allclose(ours, torch.nn.functional.conv2d(image, before) if convolution else image @ before.T, atol=1e-2)
    assert torch.allclose(ours, output, atol=1e-4, rtol=1e-4)


# --- cloneofsimo ---------------------------------------------------------------------------------------------------------------


def cloneofsimo_order(geglu: str) -> list[str]:
    """The order of layers in diffusers 0.11's UNet according to its constructors: down, up, mid; attn1, ff, attn2."""
    layers = sd15_layers()
    blocks = list(dict.fromkeys(name.split(".transformer_blocks")[0] for name in layers if "transformer_blocks" in name))
    blocks = [b for b in blocks if b.startswith("down")] + [b for b in blocks if b.startswith("up")] + ["mid_block.attentions.0"]
    first, second = ([f"{a}.to_{x}" for x in ("q", "k", "v")] + [f"{a}.to_out.0"] for a in ("attn1", "attn2"))
    order = {"middle": [*first, "ff.net.0.proj", *second], "last": [*first, *second, "ff.net.0.proj"], "none": [*first, *second]}[geglu]
    return [f"{block}.transformer_blocks.0.{layer}" for block in blocks for layer in order]


def listed(geglu: str) -> tuple[list[str], list[torch.Tensor]]:
    names, layers = cloneofsimo_order(geglu), sd15_layers()
    tensors: list[torch.Tensor] = []
    for index, name in enumerate(names):
        out, into, _ = layers[name]
        tensors += [torch.full((out, 2), float(index + 1)), torch.full((2, into), 1.0)]
    return names, tensors


@pytest.mark.parametrize("geglu", ["middle", "last", "none"])
def test_cloneofsimo_list_gets_layer_names(tmp_path: Path, geglu: str) -> None:
    names, tensors = listed(geglu)
    torch.save(tensors, tmp_path / "lora.pt")
    weights = read_lora(tmp_path / "lora.pt")
    assert weights.format == "cloneofsimo" and weights.family == "sd1"
    assert {module.name: float(module.tensors["lora_up.weight"][0, 0]) for module in weights} == {n: i + 1.0 for i, n in enumerate(names)}
    assert all(module.scale == 1.0 for module in weights)


def test_cloneofsimo_text_encoder_list(tmp_path: Path) -> None:
    torch.save(
        [torch.full(shape, float(i // 2)) + 1 for i in range(2 * 48) for shape in [(768, 4) if i % 2 == 0 else (4, 768)]], tmp_path / "t.pt"
    )
    weights = read_lora(tmp_path / "t.pt")
    found = {module.name: float(module.tensors["lora_up.weight"][0, 0]) for module in weights}
    # transformers' CLIPAttention lists k, v, q, out
    assert found["text_model.encoder.layers.0.self_attn.k_proj"] == 1
    assert found["text_model.encoder.layers.0.self_attn.q_proj"] == 3
    assert found["text_model.encoder.layers.11.self_attn.out_proj"] == 48


def test_cloneofsimo_safetensors_with_an_embedding(tmp_path: Path) -> None:
    names, tensors = listed("middle")
    table = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(tensors)}
    metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]', "<s1>": "<embed>", "author": "someone"}
    metadata |= {f"unet:{i}:rank": "2" for i in range(len(names))}
    weights = read_lora(written(tmp_path / "x.safetensors", {**table, "<s1>": torch.ones(768)}, metadata))
    assert [module.name for module in weights] == names
    assert list(weights.extra) == ["<s1>"]
    assert weights.metadata == {"author": "someone"}


def extended() -> tuple[list[str], list[torch.Tensor]]:
    """Names and tensors in the order of cloneofsimo's library: the layers below its target classes in diffusers' own UNet."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)  # SD 1.5's otherwise
    names: list[str] = []
    for name, module in model.named_modules():
        if type(module).__name__ in ("ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"):
            inner = module.named_modules(prefix=name)
            names += [child for child, layer in inner if isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d))]
    tensors: list[torch.Tensor] = []
    for number, name in enumerate(names):
        out, into, *kernel = model.get_submodule(name).weight.shape
        tensors += [torch.full((out, 2, *(1 for _ in kernel)), number + 1.0), torch.ones(2, into, *kernel)]
    return names, tensors


def test_cloneofsimo_extended_list_gets_layer_names(tmp_path: Path) -> None:
    names, tensors = extended()
    assert len(names) == 16 * 9 + 22 * 3 + 14  # attention blocks, ResNet blocks, ResNet blocks with a shortcut
    torch.save(tensors, tmp_path / "lora.pt")
    weights = read_lora(tmp_path / "lora.pt")
    assert (weights.format, weights.family, weights.algorithm) == ("cloneofsimo", "sd1", "locon")
    assert [module.name for module in weights] == names
    assert [float(module.tensors["lora_up.weight"].flatten()[0]) for module in weights] == [i + 1.0 for i in range(len(names))]
    kohya = convert(weights, "kohya").tensors
    assert kohya["lora_unet_up_blocks_0_resnets_0_conv_shortcut.lora_down.weight"].shape == (2, 2560, 1, 1)
    assert kohya["lora_unet_down_blocks_1_resnets_0_conv1.lora_down.weight"].shape == (2, 320, 3, 3)

    table = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(tensors)}
    path = written(tmp_path / "x.safetensors", table, {"unet": '["ResnetBlock2D", "CrossAttention", "Attention", "GEGLU"]'})
    assert [module.name for module in read_lora(path)] == names


def test_cloneofsimo_extended_list_in_another_order_is_refused(tmp_path: Path) -> None:
    names, tensors = extended()
    shortcut = 2 * names.index("down_blocks.1.resnets.0.conv_shortcut")
    moved = names.index("up_blocks.1.resnets.0.conv1") * 2
    for wrong in (
        tensors[:-2],  # the last layer is missing
        [*tensors, *tensors[-2:]],
        tensors[:shortcut] + tensors[shortcut + 2 :],
        tensors[:moved] + tensors[moved + 2 : moved + 4] + tensors[moved : moved + 2] + tensors[moved + 4 :],
    ):
        torch.save(wrong, tmp_path / "wrong.pt")
        with pytest.raises(UserError, match="without layer names"):
            read_lora(tmp_path / "wrong.pt")


def test_cloneofsimo_list_of_another_model_is_refused(tmp_path: Path) -> None:
    _, tensors = listed("middle")
    torch.save(tensors[:-2], tmp_path / "short.pt")
    with pytest.raises(UserError, match="without layer names"):
        read_lora(tmp_path / "short.pt")
    tensors[6], tensors[0] = tensors[16], tensors[8]
    torch.save(tensors, tmp_path / "shuffled.pt")
    with pytest.raises(UserError, match="without layer names"):
        read_lora(tmp_path / "shuffled.pt")


def test_pt_with_named_tensors(tmp_path: Path) -> None:
    tensors = lora_tensors(small_layers())
    torch.save({"state_dict": tensors}, tmp_path / "x.pt")
    assert len(read_lora(tmp_path / "x.pt").modules) == len(small_layers())


@pytest.mark.skipif(
    sys.platform != "win32" and not Path("/proc/self/maps").exists(), reason="the system does not show which files a process has mapped"
)
@pytest.mark.parametrize("kind", ["kohya", "peft", "embedding", "cloneofsimo"])
def test_file_is_not_mapped_after_reading(tmp_path: Path, kind: str) -> None:
    """Windows refuses to replace a file that a process has mapped, and tensors of a mapped file keep it mapped."""

    def mapped(path: Path) -> bool:
        if os.name != "nt":
            return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        other = path.with_suffix(".copy")
        other.write_bytes(path.read_bytes())
        try:
            os.replace(other, path)
        except PermissionError:
            return True
        return False

    metadata = None
    if kind == "cloneofsimo":
        metadata = {"unet": '["CrossAttention", "Attention", "GEGLU"]'}
        tensors = {f"unet:{i // 2}:{'down' if i % 2 else 'up'}": tensor for i, tensor in enumerate(listed("middle")[1])}
    elif kind == "peft":
        tensors = keys_in("peft", attention_pairs(small_layers()))
    else:
        tensors = lora_tensors(small_layers())
        tensors |= {"bundle_emb.ohwx.clip_l": torch.ones(2, 768)} if kind == "embedding" else {}
    path = written(tmp_path / "x.safetensors", tensors, metadata)
    held = load_file(path)
    assert held and mapped(path), "safetensors no longer maps files, so this test is void"
    del held
    assert not mapped(path)
    weights = read_lora(path)
    assert weights.modules and not mapped(path)


def test_onetrainer_embeddings_are_kept_separately(tmp_path: Path) -> None:
    tensors = {**lora_tensors(small_layers()), "bundle_emb.ohwx.clip_l": torch.ones(2, 768)}
    weights = read_lora(written(tmp_path / "x.safetensors", tensors))
    assert list(weights.extra) == ["bundle_emb.ohwx.clip_l"]
    assert weights.problems == () and "embedding" in weights.notes[0]


def test_dotted_gives_diffusers_names() -> None:
    assert (
        dotted("mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj") == "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
    )
