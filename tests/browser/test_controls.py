"""The buttons of the panel, pressed with mouse and keyboard during one training, and what they do to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import ElementHandle, Locator

from tests.browser.frontend import Frontend
from tests.browser.looks import Look
from tests.browser.panel import panel_value, training_graph, wait_for
from tests.browser.screens import pack_errors
from tests.server.comfy_server import Server, until
from trainer.runs.saved_lora import is_undamaged

EPOCH = 4  # steps: one for each of the four portraits
FIRST, EDITED = "portrait, red hoodie", "portrait, white shirt"


class Training:
    """The training that the panel shows, and its events on disk."""

    def __init__(self, frontend: Frontend, server: Server) -> None:
        self.frontend, self.server = frontend, server

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.server.base / "output" / "animelora" / "runs" / str(panel_value(self.frontend, "panel.run"))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind so far."""
        lines = (self.run / "events.jsonl").read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def wait_for_request(self, action: str) -> dict[str, Any]:
        """Wait until the training has taken up a request, and return the event."""

        def taken() -> list[dict[str, Any]]:
            return [event for event in self.events("requested") if event["action"] == action]

        until(lambda: bool(taken()), f"the training never took up {action!r}")
        return taken()[-1]

    def button(self, name: str) -> Locator:
        """A visible button of the panel."""
        return self.frontend.page.locator(".animelora-panel").get_by_role("button", name=name, exact=True)

    def press_enter_on(self, name: str) -> None:
        """Press a button with the keyboard."""
        self.button(name).focus()
        self.frontend.page.keyboard.press("Enter")


def test_buttons_control_the_training(on_canvas: Frontend, look: Look, canvas_server: Server) -> None:
    name, before = f"controls_{look.slug}", len(on_canvas.problems)
    graph = training_graph(canvas_server, name=name, epochs=500, checkpoint_every=0, validate_every=500, validation_prompts=FIRST)
    on_canvas.load(graph, name)
    on_canvas.fit()
    training = Training(on_canvas, canvas_server)
    on_canvas.run_command("Comfy.QueuePrompt")
    wait_for(on_canvas, "panel.live && panel.step && !panel.controls.row.hidden")

    step = pause_and_save(training)
    epoch = edit_prompts_and_sample(training, step)
    use_and_keep_the_enlarged_epoch(training, step, f"{name}_epoch_{epoch}.safetensors")
    last = resume_and_stop_after_the_epoch(training, step)
    finish_and_extend(training, last)
    assert pack_errors(on_canvas.problems[before:]) == []


def pause_and_save(training: Training) -> int:
    """Pause with the mouse, and save the state of that step with the keyboard. Returns the step."""
    training.button("Pause").click()
    training.wait_for_request("pause")
    wait_for(training.frontend, "panel.status.textContent.startsWith('paused')")
    step = len(training.events("step"))
    training.press_enter_on("Save now")
    wait_for(training.frontend, f"panel.saved.includes({step})")
    assert training.button("Resume").is_visible()
    (saved,) = training.events("checkpoint")
    assert saved["step"] == step and is_undamaged(Path(saved["lora"]))
    return step


def edit_prompts_and_sample(training: Training, step: int) -> int:
    """Type another validation prompt into the node; the next images show it. Returns their epoch."""
    page = training.frontend.page
    assert not training.button("Use edited prompts").is_visible()
    text_box(training.frontend, FIRST).click()
    page.keyboard.press("Control+A")
    page.keyboard.type(EDITED)
    training.button("Use edited prompts").click()
    assert training.wait_for_request("edit_prompts")["prompts"] == [EDITED]
    training.press_enter_on("Sample now")
    until(lambda: any(event["prompt"] == EDITED for event in training.events("sample")), "no image of the edited prompt")
    (made,) = [event for event in training.events("sample") if event["prompt"] == EDITED]
    assert made["step"] == step == len(training.events("step")), "it trained during the pause"
    page.locator(f'.animelora-panel .large button[title="Enlarge: {EDITED}"]').wait_for(timeout=30_000)
    training.button("Use edited prompts").wait_for(state="hidden", timeout=10_000)
    return int(made["epoch"])


def use_and_keep_the_enlarged_epoch(training: Training, step: int, file: str) -> None:
    """With the mouse: enlarge the newest image beside the one before training, save its LoRA, and load it beside the node."""
    page = training.frontend.page
    page.locator(".animelora-panel .large button").click()
    viewer = page.locator(".animelora-viewer")
    left, right = (viewer.locator("img").nth(side).get_attribute("src") for side in (0, 1))
    assert left and right and left != right
    assert viewer.locator("select").first.evaluate("(menu) => menu.selectedOptions[0].text") == "before training"
    viewer.get_by_label("Epoch on the right").select_option("0")
    assert viewer.locator("img").nth(1).get_attribute("src") == left
    assert viewer.get_by_role("button", name="Use this LoRA").is_disabled(), "there is no LoRA before training"
    viewer.get_by_label("Epoch on the right").select_option(index=1)
    viewer.get_by_role("button", name="Save among LoRAs").click()
    viewer.get_by_text(f"Saved as {file}.").wait_for(timeout=30_000)
    assert is_undamaged(training.server.base / "models" / "loras" / file)
    viewer.get_by_role("button", name="Use this LoRA").click()
    viewer.get_by_text("was added").wait_for(timeout=30_000)
    viewer.get_by_role("button", name="Close").click()
    assert viewer.count() == 0
    assert_load_lora_uses(training, step)


def assert_load_lora_uses(training: Training, step: int) -> None:
    """A Load LoRA node has the LoRA of a step of the training. Removes it and what it is linked to."""
    queued = training.frontend.prompt()
    (pick,) = [number for number, node in queued.items() if node["class_type"] == "AnimeLoRA_PickEpoch"]
    assert (queued[pick]["inputs"]["run"], queued[pick]["inputs"]["step"]) == (training.run.name, step)
    (load,) = [node for node in queued.values() if node["class_type"] == "AnimeLoRA_LoadLora"]
    assert load["inputs"]["lora"] == [pick, 0]
    training.frontend.page.evaluate("""() => { for (const type of ["AnimeLoRA_PickEpoch", "AnimeLoRA_LoadLora"])
      window.app.graph.remove(window.app.graph._nodes.find((node) => node.type === type)); }""")


def resume_and_stop_after_the_epoch(training: Training, step: int) -> int:
    """Resume with the keyboard, and stop with the mouse at the end of an epoch, with a LoRA. Returns the last step."""
    training.press_enter_on("Resume")
    wait_for(training.frontend, f"panel.step.step > {step}")
    training.button("Stop after this epoch").click()
    wait_for(training.frontend, "panel.ended === 'stopped' || panel.controls.epoch.disabled")
    wait_for(training.frontend, "!panel.live && panel.status.textContent.startsWith('stopped at step')")
    (stopped,) = training.events("stopped")
    last = int(stopped["step"])
    assert last % EPOCH == 0
    assert str(last) in str(panel_value(training.frontend, "panel.status.textContent"))
    assert panel_value(training.frontend, f"panel.saved.includes({last})")
    training.button("Use this LoRA").click()
    training.frontend.page.wait_for_function("() => window.app.graph._nodes.some((node) => node.type === 'AnimeLoRA_LoadLora')")
    assert_load_lora_uses(training, last)
    assert training.frontend.dialogs() == [], "a stop is no failure"
    return last


def finish_and_extend(training: Training, last: int) -> None:
    """With one epoch more than were trained, the run continues and ends. Its button adds five epochs, which continue it."""
    frontend = training.frontend
    epochs = last // EPOCH + 1
    frontend.set_widget("AnimeLoRA_TrainLora", "epochs", epochs)
    wait_for(frontend, f"panel.before.headline.textContent === 'Run continues from step {last} of {last + EPOCH}'")
    frontend.run_command("Comfy.QueuePrompt")
    wait_for(frontend, "!panel.live && panel.ended === 'done'")
    training.button("+5 epochs").click()
    wait_for(frontend, f"panel.ended === 'done' && panel.step.step === {last + 6 * EPOCH}")
    assert [event["start_step"] for event in training.events("plan")] == [0, last, last + EPOCH]
    assert [event["step"] for event in training.events("step")] == list(range(1, last + 6 * EPOCH + 1))
    (train,) = [node for node in frontend.prompt().values() if node["class_type"] == "AnimeLoRA_TrainLora"]
    assert train["inputs"]["epochs"] == epochs + 5


def text_box(frontend: Frontend, text: str) -> ElementHandle:
    """The visible text box that holds ``text``."""
    find = "(text) => [...document.querySelectorAll('textarea')].find((box) => box.value === text && box.checkVisibility())"
    box = frontend.page.evaluate_handle(find, text).as_element()
    assert box is not None, f"no text box with {text!r}"
    return box
