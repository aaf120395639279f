"""Styles: of the drawing, with the colours that paths have in plots too; of a page to be read."""

import functools
from pathlib import Path

from hyp.paths import PATHS


def paper() -> str:
    """The style sheet of a page that needs nothing but itself, with that of drawings in it."""
    return Path(__file__).with_name("paper.css").read_text() + style()


@functools.cache
def style() -> str:
    """A style sheet: each path's colour, on light and on dark, as ``--PATH``, and as ``--path`` of the class ``path-PATH``."""
    light = " ".join(f"--{path.name}: {path.colour};" for path in PATHS.values())
    dark = " ".join(f"--{path.name}: {path.colour_dark};" for path in PATHS.values())
    classes = "\n".join(f".path-{name} {{ --path: var(--{name}); }}" for name in PATHS)
    colours = f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{classes}\n"
    return Path(__file__).with_name("drawing.css").read_text() + colours
