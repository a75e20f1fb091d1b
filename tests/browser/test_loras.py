"""LoRAs on the canvas: the card in Load LoRA, the list of LoRA Stack, and a newly trained LoRA in the menus."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from random_checkpoints.layout import TINY as SIZE
from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import PATIENCE, training_graph
from tests.browser.screens import SCREENSHOTS, pack_errors, send_event
from tests.server.comfy_server import Server
from tests.server.files import portrait
from tests.server.loras import attention_lora
from tests.tools.workflows.canvas import Canvas, Group
from tests.tools.workflows.parts import CHECKPOINT
from trainer.lorafile import TrainingFacts, build_metadata

FACTS = TrainingFacts(
    name="retro_style", family="sd1", rank=2, alpha=1.0, base_name="anything-v5.safetensors", lr=1e-4, epochs=5, steps=1200,
    image_count=24, resolution=512, finished_at=1_770_000_000.0, trigger="myRetro", class_description="girl",
    thumbnail=portrait(256, 3), author="A. Painter", description="Soft colours of the nineties.",
)  # fmt: skip
_NODE = "window.app.graph._nodes.find((node) => node.type === '{}')"


@pytest.fixture
def shelf(canvas_server: Server, frontend: Frontend) -> Path:
    """The LoRA folder with three files: with our metadata, with a preview and another program's metadata, and with none."""
    folder = canvas_server.base / "models" / "loras"
    (folder / "sub").mkdir(exist_ok=True)
    for name, metadata in (("retro_style", build_metadata(FACTS)), ("sub/chibi", {"ss_sd_model_name": "model.ckpt"}), ("plain", {})):
        path = attention_lora(folder / f"{name}.safetensors", context=SIZE.text_width)
        save_file(load_file(path), path, metadata)
    portrait(300, 5).save(folder / "sub" / "chibi.preview.png")
    (folder / "sub" / "chibi.json").write_text('{"activation text": "chibi, big head, orb (toy)"}', encoding="utf-8")
    frontend.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=frontend.url)
    frontend.page.evaluate("async () => await window.app.refreshComboInNodes()")
    return folder


def painting(server: Server, kind: str, **values: Any) -> dict[str, Any]:
    """Model, LoRA and two prompts in front of a sampler."""
    canvas = Canvas("loras", server.get("/object_info"))
    base = canvas.node("AnimeLoRA_LoadDemoBase", checkpoint=CHECKPOINT)
    lora = canvas.node(kind, model=base["model"], clip=base["clip"], wide=460, **values)
    wanted = canvas.node("CLIPTextEncode", clip=lora["clip"], text="a portrait")
    avoided = canvas.node("CLIPTextEncode", "Not this", clip=lora["clip"], text="blurry")
    latent = canvas.node("EmptyLatentImage", width=64, height=64)
    prompts: dict[str, Any] = {"positive": wanted["CONDITIONING"], "negative": avoided["CONDITIONING"]}
    painted = canvas.node("KSampler", model=lora["model"], latent_image=latent["LATENT"], **prompts)
    words = canvas.node("PreviewAny", source=lora["trigger_words"], tall=170)
    canvas.row(Group("LoRAs", [[base, latent], [lora, words], [avoided, wanted], [painted]]))
    return canvas.draw()


def texts(frontend: Frontend) -> list[str]:
    """Both prompts, in the order of the graph."""
    found = frontend.page.evaluate(
        "() => window.app.graph._nodes.filter((node) => node.type === 'CLIPTextEncode').map((node) => node.widgets[0].value)"
    )
    return [str(text) for text in found]


def pick(frontend: Frontend, name: str) -> None:
    """Choose an entry in Load LoRA's menu."""
    frontend.page.evaluate(
        f"""(name) => {{
          const menu = {_NODE.format("AnimeLoRA_LoadLora")}.widgets.find((widget) => widget.name === "lora_name");
          menu.value = name;
          menu.callback(name);
        }}""",
        name,
    )


def list_of(frontend: Frontend) -> list[dict[str, Any]]:
    """The value of LoRA Stack as it would be queued."""
    (stack,) = (node for node in frontend.prompt().values() if node["class_type"] == "AnimeLoRA_LoraStack")
    rows: list[dict[str, Any]] = json.loads(stack["inputs"]["loras"])
    return rows


def add(frontend: Frontend, *typed: str) -> None:
    """Add LoRAs by typing parts of their names."""
    for text in typed:
        frontend.page.locator(".animelora-rows .add").click()
        frontend.page.locator(".animelora-popup input").fill(text)
        frontend.page.keyboard.press("Enter")


def keep(frontend: Frontend, look: Look, name: str, *, vue: bool) -> None:
    """Update the documentation's screenshot, if requested, from one of the two renderings of the newest ComfyUI."""
    if os.environ.get("UPDATE_SCREENSHOTS") and (look.vue if vue else look.first):
        frontend.screenshot(SCREENSHOTS / f"canvas-{name}-{'vue-light' if vue else 'classic-dark'}.png")


def test_card_shows_a_lora_and_copies_its_trigger_words(frontend: Frontend, look: Look, canvas_server: Server, shelf: Path) -> None:
    before = len(frontend.problems)
    frontend.load(painting(canvas_server, "AnimeLoRA_LoadLora", lora_name="retro_style.safetensors"), "card")
    frontend.fit()
    card = frontend.page.locator(".animelora-lora")
    card.locator("img").wait_for(timeout=30_000)
    assert card.locator("img").evaluate("(image) => image.complete && image.naturalWidth === 256")
    for text in ("retro_style", "Stable Diffusion 1.x", "rank 2, alpha 1", "anything-v5.safetensors", "myRetro girl"):
        assert text in card.inner_text()
    keep(frontend, look, "lora-card", vue=False)

    card.locator(".copy").first.click()
    frontend.page.wait_for_function("async () => await navigator.clipboard.readText() === 'myRetro girl'", timeout=10_000)
    for _ in range(2):  # the second click must not add it again
        card.locator(".insert").first.click()
        assert sorted(texts(frontend)) == ["blurry", "myRetro girl, a portrait"]
    card.locator("summary").click()
    for text in ("1200", "0.0001", "512 × 512", "2026-02-02", "A. Painter", "Soft colours of the nineties."):
        assert text in card.inner_text()

    pick(frontend, "sub/chibi.safetensors")
    frontend.page.get_by_text("big head", exact=True).wait_for(timeout=30_000)
    assert card.locator("img").count() == 1
    for label in ("orb (toy)", "all"):
        card.locator(".chip", has=frontend.page.get_by_text(label, exact=True)).locator(".insert").click()
        assert r"orb \(toy\)" in sorted(texts(frontend))[1]
    assert sorted(texts(frontend)) == ["blurry", r"chibi, big head, orb \(toy\), myRetro girl, a portrait"]
    pick(frontend, "plain.safetensors")
    frontend.page.get_by_text("lists no trigger words").wait_for(timeout=30_000)
    assert "rank 2, alpha 1" in card.inner_text()
    pick(frontend, "(lora input)")
    frontend.page.get_by_text("Choose a LoRA to see its card").wait_for(timeout=30_000)
    assert "animelora_card" not in json.dumps(frontend.prompt()), "the card is no input"
    assert pack_errors(frontend.problems[before:]) == []


def test_words_are_inserted_into_the_selected_node(frontend: Frontend, canvas_server: Server, shelf: Path) -> None:
    frontend.load(painting(canvas_server, "AnimeLoRA_LoadLora", lora_name="retro_style.safetensors"), "selected")
    frontend.fit()
    frontend.page.locator(".animelora-lora .insert").first.wait_for(timeout=30_000)
    frontend.page.evaluate("() => window.app.canvas.selectNodes(window.app.graph._nodes.filter((node) => node.title === 'Not this'))")
    frontend.page.locator(".animelora-lora .insert").first.click()
    assert sorted(texts(frontend)) == ["a portrait", "myRetro girl, blurry"]


def test_loras_are_chosen_ordered_and_toggled_in_one_node(frontend: Frontend, look: Look, canvas_server: Server, shelf: Path) -> None:
    before = len(frontend.problems)
    frontend.load(painting(canvas_server, "AnimeLoRA_LoraStack"), "stack")
    frontend.fit()
    add(frontend, "retro", "sub chi", "plain")
    rows = frontend.page.locator(".animelora-rows .row")
    names = ["retro_style.safetensors", "sub/chibi.safetensors", "plain.safetensors"]
    assert list_of(frontend) == [{"on": True, "name": name, "strength": 1} for name in names]

    rows.nth(0).locator(".strength").fill("0.6")
    rows.nth(0).locator(".strength").press("Tab")
    rows.nth(1).locator(".up").click()  # chibi in front
    rows.nth(2).locator(".switch").click()
    frontend.page.locator(".animelora-rows .apart").click()
    rows.nth(1).locator(".clip").fill("0.25")
    rows.nth(1).locator(".clip").press("Tab")
    wanted = [
        {"on": True, "name": "sub/chibi.safetensors", "strength": 1, "clip": 1},
        {"on": True, "name": "retro_style.safetensors", "strength": 0.6, "clip": 0.25},
        {"on": False, "name": "plain.safetensors", "strength": 1, "clip": 1},
    ]
    assert list_of(frontend) == wanted
    rows.nth(0).locator(".info").click()
    frontend.page.locator(".animelora-popup img").wait_for(timeout=30_000)
    assert "big head" in frontend.page.locator(".animelora-popup").inner_text()
    keep(frontend, look, "lora-stack", vue=True)
    frontend.page.locator(".animelora-popup summary").click()  # moves the focus into the card
    frontend.page.keyboard.press("Escape")
    assert frontend.page.locator(".animelora-popup").count() == 0

    inside = """() => { const box = document.querySelector(".animelora-rows").getBoundingClientRect();
      return [...document.querySelectorAll(".animelora-rows .row, .animelora-rows .add")].every((each) => {
        const part = each.getBoundingClientRect(); return part.height > 0 && part.bottom <= box.bottom + 1; }); }"""
    assert frontend.page.evaluate(inside), "a row is cut off"
    frontend.page.locator(".animelora-rows .add").click()
    menu = frontend.page.locator(".animelora-popup").bounding_box()
    assert menu is not None and menu["y"] >= 0 and menu["y"] + menu["height"] <= 1350
    frontend.page.keyboard.press("Escape")

    outputs = canvas_server.run(frontend.prompt())
    assert [entry["text"] for entry in outputs.values() if "text" in entry] == [[r"chibi, big head, orb \(toy\), myRetro girl"]]

    assert pack_errors(frontend.problems[before:]) == []
    kept = frontend.serialized()
    frontend.reload()
    before = len(frontend.problems)  # an older frontend reports errors about its own settings while it starts
    frontend.load(kept, "stack again")
    assert list_of(frontend) == wanted
    assert rows.locator(".name").all_inner_texts() == ["sub/chibi", "retro_style", "plain"]
    assert [rows.nth(number).locator(".switch").get_attribute("aria-checked") for number in range(3)] == ["true", "true", "false"]
    frontend.fit()
    rows.nth(0).locator(".remove").click()
    assert list_of(frontend) == wanted[1:]
    assert pack_errors(frontend.problems[before:]) == []


def test_missing_lora_is_marked_and_refused_until_disabled(frontend: Frontend, canvas_server: Server, shelf: Path) -> None:
    gone = json.dumps([{"on": True, "name": "gone.safetensors", "strength": 1}])
    frontend.load(painting(canvas_server, "AnimeLoRA_LoraStack", loras=gone), "gone")
    frontend.fit()
    frontend.page.locator(".animelora-rows .row.missing").wait_for(timeout=30_000)
    frontend.page.locator(".animelora-rows .row .switch").click()
    assert [row["on"] for row in list_of(frontend)] == [False]
    canvas_server.run(frontend.prompt())


def test_new_lora_is_in_every_menu_without_a_reload(frontend: Frontend, look: Look, canvas_server: Server, shelf: Path) -> None:
    """One look trains it for real; in the others the test writes the file and sends the event of a finished training or of Pick Epoch."""
    name = f"fresh_{'vue' if look.vue else 'classic'}"
    graph = training_graph(canvas_server, name=name, epochs=1, validate_every=0)
    frontend.load(graph, name)
    frontend.page.evaluate("""() => {
      for (const type of ["AnimeLoRA_LoadLora", "LoraLoader", "AnimeLoRA_LoraStack"]) {
        const node = window.LiteGraph.createNode(type);
        node.pos = [1200, 700 * window.app.graph._nodes.length];
        window.app.graph.add(node);
      }
    }""")
    has = """(file) => ["AnimeLoRA_LoadLora", "LoraLoader"].every((type) => window.app.graph._nodes.find((node) => node.type === type)
      .widgets.find((widget) => widget.name === "lora_name").options.values.includes(file))"""
    assert not frontend.page.evaluate(has, f"{name}.safetensors")
    if look.vue:
        frontend.run_command("Comfy.QueuePrompt")
    else:
        attention_lora(shelf / f"{name}.safetensors", context=SIZE.text_width)
        send_event(frontend, "animelora.loras" if look.comfyui and look.comfyui.version == "0.3.64" else "animelora.train", event="end")
    frontend.page.wait_for_function(has, arg=f"{name}.safetensors", timeout=PATIENCE)
    pick(frontend, f"{name}.safetensors")
    frontend.fit()
    frontend.page.locator(".animelora-lora").get_by_text(name, exact=True).wait_for(timeout=30_000)
    add(frontend, name)
    assert [row["name"] for row in list_of(frontend)] == [f"{name}.safetensors"]


def test_card_of_a_linked_lora_appears_after_the_run(frontend: Frontend, canvas_server: Server, shelf: Path) -> None:
    graph = training_graph(canvas_server, name="linked", epochs=1)
    frontend.load(graph, "linked")
    number = frontend.page.evaluate("""() => {
      const train = window.app.graph._nodes.find((node) => node.type === "AnimeLoRA_TrainLora");
      const load = window.LiteGraph.createNode("AnimeLoRA_LoadLora");
      load.pos = [train.pos[0] + train.size[0] + 60, train.pos[1]];
      window.app.graph.add(load);
      train.connect(0, load, load.inputs.findIndex((input) => input.name === "lora"));
      return load.id;
    }""")
    frontend.page.get_by_text("appears after the graph has run").wait_for(timeout=30_000)
    send_event(frontend, "animelora.lora", node_id=str(number), name="retro_style.safetensors")
    card = frontend.page.locator(".animelora-lora")
    card.locator("img").wait_for(timeout=30_000)
    frontend.load(frontend.serialized(), "linked again")
    card.get_by_text("retro_style", exact=True).wait_for(timeout=30_000)
