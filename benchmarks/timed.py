"""Runs a training script and records the times of its optimiser steps and its memory. ``speed.py`` uses it for every trainer.

    python benchmarks/timed.py OUT.json [--targets NAME,NAME | --blocks N] SCRIPT [ARGUMENT ...]

Times are taken by a hook that torch calls after each optimiser step: on a GPU as events in the stream, which wait for nothing.
``--targets`` replaces the modules that peft's ``LoraConfig`` is asked to adapt: diffusers' script knows only attention. ``--blocks`` is the
depth of kohya's Anima, which is always built with 28 blocks.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

BEGAN = time.time()


class Clock:
    """The times of all optimiser steps."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.processor: list[float] = []
        self.events: list[Any] = []

    def tick(self, *_: object) -> None:
        """Record a step."""
        import torch

        self.times.append(time.time())
        self.processor.append(time.process_time())
        if torch.cuda.is_available():
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.events.append(event)

    def result(self) -> dict[str, Any]:
        """Seconds between steps, on the GPU if there is one; CPU seconds of all threads between them; peak memory in GB."""
        import torch

        if self.events:
            torch.cuda.synchronize()
            between = [first.elapsed_time(second) / 1000 for first, second in zip(self.events, self.events[1:], strict=False)]
        else:
            between = [second - first for first, second in zip(self.times, self.times[1:], strict=False)]
        gpu = torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else None
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu ({processor()})"
        busy = [second - first for first, second in zip(self.processor, self.processor[1:], strict=False)]
        found = {"began": BEGAN, "first_step": self.times[0], "between_steps": between, "busy_between_steps": busy}
        found |= {"gpu_gb": gpu, "rss_gb": peak_rss_gb()}
        return {**found, "torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}


def processor() -> str:
    """The instruction sets that decide how fast the CPU multiplies matrices; oneDNN can be limited to fewer."""
    import torch

    parts = [torch.backends.cpu.get_cpu_capability()]
    tests = {"_is_avx512_bf16_supported": "AVX512 BF16", "_is_amx_tile_supported": "AMX"}
    parts += [name for test, name in tests.items() if getattr(torch.cpu, test, lambda: False)()]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return ", ".join([*parts, *([f"ONEDNN_MAX_CPU_ISA={limit}"] if limit else [])])


def peak_rss_gb() -> float:
    """The process' largest resident size."""
    if os.name == "nt":
        import psutil

        return float(psutil.Process().memory_info().peak_wset / 1e9)
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9)


def adapt_these(modules: list[str]) -> None:
    """Make peft's LoraConfig adapt ``modules``, regardless of the script."""
    import peft

    class Config(peft.LoraConfig):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "target_modules": modules})

    peft.LoraConfig = Config


def build_blocks(count: int) -> None:
    """Make kohya's Anima have ``count`` blocks. Its checkout has to be in ``sys.path``."""
    anima: Any = importlib.import_module("library.anima_models").Anima
    init = anima.__init__

    def with_count(self: Any, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "num_blocks": count})

    anima.__init__ = with_count


def main() -> None:
    """Run the script as ``__main__``; its exit status is ours."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    out, rest = Path(sys.argv[1]), sys.argv[2:]
    blocks = 0
    if rest[0] == "--targets":
        adapt_these(rest[1].split(","))
        rest = rest[2:]
    elif rest[0] == "--blocks":
        blocks, rest = int(rest[1]), rest[2:]
    clock = Clock()
    register_optimizer_step_post_hook(clock.tick)

    def write() -> None:
        if clock.times:
            out.write_text(json.dumps(clock.result()), encoding="utf-8")

    leave = os._exit

    def leave_at_once(status: int) -> None:  # our own child ends this way, without exit handlers
        write()
        leave(status)

    os._exit = leave_at_once  # type: ignore[assignment]
    sys.argv = rest
    sys.path.insert(0, str(Path(rest[0]).resolve().parent))
    if blocks:
        build_blocks(blocks)
    try:
        runpy.run_path(rest[0], run_name="__main__")
    finally:
        write()


if __name__ == "__main__":
    main()
