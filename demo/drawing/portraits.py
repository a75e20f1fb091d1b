"""The attributes of a portrait, random portraits, and captions.

A portrait is a frozen record of attributes. The renderers (``render_*.py``) draw the same record in
several styles inside one geometry frame, and :func:`caption` describes it in comma-separated tags.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, fields, replace

RGB = tuple[int, int, int]

HAIR_COLOURS: dict[str, RGB] = {
    "black": (38, 34, 42),
    "brown": (112, 68, 40),
    "blonde": (234, 196, 98),
    "red": (190, 48, 34),
    "grey": (168, 170, 178),
    "blue": (58, 98, 204),
    "pink": (240, 136, 176),
    "green": (62, 152, 84),
    "purple": (132, 76, 180),
    "orange": (236, 128, 40),
}
SKINS: dict[str, RGB] = {
    "pale": (250, 226, 210),
    "light": (242, 204, 174),
    "tan": (214, 164, 122),
    "brown": (158, 106, 72),
    "dark": (100, 64, 46),
}
EYE_COLOURS: dict[str, RGB] = {
    "brown": (110, 64, 32),
    "blue": (56, 120, 216),
    "green": (52, 150, 78),
    "amber": (222, 148, 32),
    "purple": (136, 76, 196),
    "red": (200, 44, 52),
}
BACKGROUND_COLOURS: dict[str, RGB] = {
    "white": (238, 238, 238),
    "grey": (146, 150, 156),
    "blue": (112, 168, 230),
    "green": (126, 190, 124),
    "yellow": (244, 220, 118),
    "pink": (244, 178, 196),
    "purple": (164, 136, 212),
    "teal": (72, 170, 168),
    "orange": (244, 166, 96),
}
CLOTHES_COLOURS: dict[str, RGB] = {
    "white": (240, 240, 236),
    "black": (48, 48, 56),
    "red": (202, 52, 52),
    "blue": (52, 92, 182),
    "green": (58, 134, 82),
    "yellow": (240, 200, 62),
    "purple": (126, 74, 170),
    "pink": (236, 140, 168),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "hair_style": ("short", "bob", "long", "ponytail", "twin tails", "bun", "spiky", "curly"),
    "fringe": ("straight", "side", "parted", "none"),
    "hair_colour": tuple(HAIR_COLOURS),
    "skin": tuple(SKINS),
    "eye_colour": tuple(EYE_COLOURS),
    "eye_shape": ("round", "almond", "sleepy"),
    "brows": ("thin", "thick", "angry"),
    "mouth": ("smile", "neutral", "open", "sad"),
    "glasses": ("none", "round", "square"),
    "head": ("left", "straight", "right"),
    "gaze": ("left", "ahead", "right"),
    "cheeks": ("plain", "blush", "freckles"),
    "background": ("plain", "gradient", "striped", "dotted", "circle"),
    "background_colour": tuple(BACKGROUND_COLOURS),
    "clothes": ("t-shirt", "shirt", "hoodie", "turtleneck", "jacket"),
    "clothes_colour": tuple(CLOTHES_COLOURS),
    "accessory": ("none", "earrings", "bow", "headphones", "beanie", "flower"),
}
_WEIGHTS: dict[str, tuple[float, ...]] = {
    "glasses": (3, 1, 1),
    "head": (1, 2, 1),
    "gaze": (1, 2, 1),
    "cheeks": (2, 1, 1),
    "accessory": (4, 1, 1, 1, 1, 1),
}

STYLES = ("photo", "flat", "pencil", "anime")
"""All styles. The base model is trained on :data:`BASE_STYLES` only; ``anime`` is held back."""
BASE_STYLES = ("photo", "flat", "pencil")
STYLE_WORDS: dict[str, str] = {
    "photo": "photo portrait",
    "flat": "flat drawing",
    "pencil": "pencil drawing",
    "anime": "anime portrait",
}


@dataclass(frozen=True)
class Portrait:
    """One portrait. The named attributes appear in the caption, the numbers are free variation.

    ``tilt`` is in degrees (positive: clockwise), ``shift_x``/``shift_y`` in image widths, ``scale`` and
    ``width`` are factors, ``light`` is -1 (from the left) or 1; colours are 8-bit RGB.
    """

    hair_style: str
    fringe: str
    hair_colour: str
    skin: str
    eye_colour: str
    eye_shape: str
    brows: str
    mouth: str
    glasses: str
    head: str
    gaze: str
    cheeks: str
    background: str
    background_colour: str
    clothes: str
    clothes_colour: str
    accessory: str
    hair_rgb: RGB
    skin_rgb: RGB
    eye_rgb: RGB
    background_rgb: RGB
    clothes_rgb: RGB
    tilt: float
    shift_x: float
    shift_y: float
    scale: float
    width: float
    side: int
    light: int
    seed: int


def jitter(rgb: RGB, rng: random.Random, amount: float = 1.0) -> RGB:
    """Vary a colour slightly in hue, saturation and value; ``amount`` 0 leaves it as it is."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    h = (h + rng.uniform(-0.012, 0.012) * amount) % 1.0
    s = min(1.0, max(0.0, s * (1 + rng.uniform(-0.1, 0.1) * amount)))
    v = min(1.0, max(0.0, v * (1 + rng.uniform(-0.06, 0.06) * amount)))
    r, g, b = colorsys.hsv_to_rgb(h, s, v)
    return (round(r * 255), round(g * 255), round(b * 255))


def random_portrait(seed: int) -> Portrait:
    """Draw every attribute at random; the same seed gives the same portrait on every machine."""
    rng = random.Random(f"portrait-{seed}")
    chosen = {name: rng.choices(values, weights=_WEIGHTS.get(name))[0] for name, values in CHOICES.items()}
    if chosen["hair_style"] in ("spiky", "curly", "bun") and chosen["accessory"] == "beanie":
        chosen["accessory"] = "none"
    tilt = {"left": -11.0, "straight": 0.0, "right": 11.0}[chosen["head"]]
    return Portrait(
        **chosen,
        hair_rgb=jitter(HAIR_COLOURS[chosen["hair_colour"]], rng),
        skin_rgb=jitter(SKINS[chosen["skin"]], rng, 0.4),
        eye_rgb=jitter(EYE_COLOURS[chosen["eye_colour"]], rng),
        background_rgb=jitter(BACKGROUND_COLOURS[chosen["background_colour"]], rng),
        clothes_rgb=jitter(CLOTHES_COLOURS[chosen["clothes_colour"]], rng),
        tilt=tilt + rng.uniform(-2.0, 2.0),
        shift_x=rng.uniform(-0.015, 0.015),
        shift_y=rng.uniform(-0.012, 0.012),
        scale=rng.uniform(0.96, 1.04),
        width=rng.uniform(0.95, 1.05),
        side=rng.choice((-1, 1)),
        light=rng.choice((-1, 1)),
        seed=seed,
    )


def with_attributes(portrait: Portrait, **changes: str) -> Portrait:
    """The same portrait with other named attributes; the exact colours follow the new names.

    Raises ``ValueError`` for an unknown attribute or value.
    """
    for name, value in changes.items():
        if name not in CHOICES:
            raise ValueError(f"unknown portrait attribute {name!r}; known: {', '.join(CHOICES)}")
        if value not in CHOICES[name]:
            raise ValueError(f"{name} cannot be {value!r}; choose one of {', '.join(CHOICES[name])}")
    palettes = {
        "hair_colour": ("hair_rgb", HAIR_COLOURS),
        "skin": ("skin_rgb", SKINS),
        "eye_colour": ("eye_rgb", EYE_COLOURS),
        "background_colour": ("background_rgb", BACKGROUND_COLOURS),
        "clothes_colour": ("clothes_rgb", CLOTHES_COLOURS),
    }
    values: dict[str, object] = dict(changes)
    for name in changes:
        if name in palettes:
            field, palette = palettes[name]
            values[field] = palette[changes[name]]
    if "head" in changes:
        values["tilt"] = {"left": -11.0, "straight": 0.0, "right": 11.0}[changes["head"]]
    return replace(portrait, **values)  # type: ignore[arg-type]


def portrait_tags(portrait: Portrait) -> list[str]:
    """The tags that describe a portrait, most visible first; absent attributes have no tag."""
    p = portrait
    hair = {"spiky": "spiky", "curly": "curly", "short": "short", "long": "long"}
    out = [f"{hair[p.hair_style]} {p.hair_colour} hair" if p.hair_style in hair else f"{p.hair_colour} hair"]
    if p.hair_style not in hair:
        out.append(p.hair_style)
    out.append(f"{p.skin} skin")
    out.append(f"{p.background} {p.background_colour} background")
    out.append(f"{p.clothes_colour} {p.clothes}")
    if p.glasses != "none":
        out.append(f"{p.glasses} glasses")
    out.append(f"{p.eye_shape} {p.eye_colour} eyes")
    out.append({"straight": "straight bangs", "side": "side bangs", "parted": "parted bangs", "none": "hair swept back"}[p.fringe])
    out.append({"smile": "smile", "neutral": "closed mouth", "open": "open mouth", "sad": "sad"}[p.mouth])
    if p.accessory != "none":
        out.append({"bow": "hair bow", "flower": "flower in hair"}.get(p.accessory, p.accessory))
    if p.head != "straight":
        out.append(f"head tilted {p.head}")
    if p.gaze != "ahead":
        out.append(f"looking {p.gaze}")
    if p.cheeks != "plain":
        out.append(p.cheeks)
    out.append(f"{p.brows} eyebrows")
    return out


def caption(portrait: Portrait, style: str | None, rng: random.Random | None = None) -> str:
    """Describe a portrait in tags, led by the style's words (``None``: no style words).

    With ``rng`` a tenth of the tags is left out and the rest after the style is shuffled lightly, so that
    a model trained on the captions does not depend on one order.
    """
    parts = portrait_tags(portrait)
    if rng is not None:
        parts = [tag for tag in parts if rng.random() > 0.1]
        keyed = sorted(enumerate(parts), key=lambda item: item[0] + rng.uniform(0, 4))
        parts = [tag for _, tag in keyed]
    head = [STYLE_WORDS[style]] if style is not None else []
    return ", ".join(head + parts)


def attribute_names() -> list[str]:
    """The names of the attributes that captions depend on."""
    return [field.name for field in fields(Portrait) if field.name in CHOICES]
