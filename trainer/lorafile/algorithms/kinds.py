"""The known algorithms by the names of their tensors, which are LyCORIS' names."""

from __future__ import annotations

# algorithm: (required tensors, optional tensors). The first algorithm whose tensors are present applies.
ALGORITHMS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "lora": (frozenset({"lora_up.weight", "lora_down.weight"}), frozenset({"lora_mid.weight"})),
    "loha": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), frozenset({"hada_t1", "hada_t2"})),
    "lokr": (
        frozenset(),
        frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"}),
    ),
    "full": (frozenset({"diff"}), frozenset()),
    "norm": (frozenset({"w_norm"}), frozenset()),
}
# Tensors that any algorithm may have: DoRA's magnitudes, changes of the bias (alone they are the algorithm "bias"), and the shape to which
# ComfyUI enlarges the layer first.
BIASES = frozenset({"diff_b", "b_norm"})
COMMON = BIASES | {"dora_scale", "reshape_weight"}

# Algorithms of other programs whose weight change is not computed here. Conversion only renames their tensors.
PASSED_THROUGH = {
    "glora": ("a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"),
    "oft": ("oft_blocks", "oft_diag"),
    "boft": ("oft_blocks", "rescale"),
    "ia3": ("weight", "on_input"),
    "set": ("set_weight",),  # ComfyUI: replaces the weight, whatever the strength
}
_OWN = [must | may for must, may in ALGORITHMS.values()] + [frozenset(names) for names in PASSED_THROUGH.values()]
SUFFIXES: frozenset[str] = COMMON.union({"alpha"}, *_OWN)


def algorithm_of(suffixes: frozenset[str]) -> str | None:
    """The algorithm that tensors with these names belong to; None when they belong to no known one."""
    own = suffixes - COMMON - {"alpha"}
    if not own:
        return "bias" if suffixes & BIASES else None
    for name, (must, may) in ALGORITHMS.items():
        if must <= own <= must | may and (name != "lokr" or _lokr_complete(own)):
            return name
    if "oft_blocks" in own:
        return "boft" if "rescale" in own else "oft"
    for name, known in PASSED_THROUGH.items():
        if own <= set(known) and known[0] in own:
            return name
    return None


def _lokr_complete(own: frozenset[str]) -> bool:
    first = "lokr_w1" in own or {"lokr_w1_a", "lokr_w1_b"} <= own
    second = "lokr_w2" in own or {"lokr_w2_a", "lokr_w2_b"} <= own
    return first and second
