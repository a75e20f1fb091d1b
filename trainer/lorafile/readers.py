"""Which programs cannot read a LoRA file for Anima or Lumina 2 as it is. No format serves both kohya's trainers and diffusers.

Measured with the loaders of ComfyUI 0.33 and diffusers 0.42: see docs/compatibility.md.
"""

from __future__ import annotations

from ..core.messages import ExportOption, Message

_AS_COMFYUI = ExportOption("format", "comfyui")
_NAMED_BY_DIFFUSERS = ("diffusers", "diffusers-old", "peft")


def who_cannot_read(family: str, form: str, *, has_alpha: bool, plain: bool) -> tuple[str, ...]:
    """A note for each program that loads nothing from a file for ``family`` in the format ``form``; none for Stable Diffusion.

    ``has_alpha``: the file has alpha tensors. ``plain``: all its layers are plain LoRA.
    """
    if family == "lumina2":
        return ("diffusers cannot load this file, because its Lumina 2 has three layers in place of attention.qkv",)
    if family != "anima":
        return ()
    if form in _NAMED_BY_DIFFUSERS:
        return (
            Message(
                "ComfyUI's own loader uses no key with diffusers' names for Anima; for it, choose ", _AS_COMFYUI, ". Load LoRA reads them"
            ),
        )
    if not plain:
        return ("diffusers cannot load this file, because not all its layers are plain LoRA",)
    if form == "kohya":
        return (Message("diffusers loads nothing from kohya's names for Anima, without an error; for diffusers, choose ", _AS_COMFYUI),)
    if has_alpha:
        return (Message("diffusers refuses this file because of its alpha tensors; for diffusers, choose ", _AS_COMFYUI),)
    return ()
