"""What a picture shows: the prompt, as large as it fits, and below it that it is the sandbox's."""

from collections.abc import Sequence
from dataclasses import dataclass

from kling_sandbox.pictures.font import HEIGHT, WIDTH, drawable, truncate, wrap

LABEL = "sandbox, not Kling"
MAX_LABEL_LINES = 2
MAX_WORD = 16
"""Characters of a word that are not to be broken for larger letters."""
IMAGE_PIXELS, VIDEO_PIXELS = 921_600, 230_400
"""Pixels of a square image, and of a video: those of 960 by 960, and of 640 by 360."""


@dataclass(frozen=True)
class Page:
    """The content of one picture. `note`: behind the label, such as `2/4`; `colour`: chooses among a few."""

    text: str
    note: str = ""
    aspect_ratio: str = ""
    colour: int = 0

    @property
    def label(self) -> str:
        """The line at the bottom."""
        return f"{LABEL}  {self.note}".rstrip()

    def size(self, pixels: int, multiple: int) -> tuple[int, int]:
        """Width and height with exactly the requested ratio and about so many pixels, in multiples of a number."""
        wide, high = map(int, (self.aspect_ratio if ":" in self.aspect_ratio else "16:9").split(":"))
        unit = max(int((pixels / (wide * high)) ** 0.5) // multiple, 1) * multiple
        return wide * unit, high * unit

    def lines(self, width: int, height: int, scales: Sequence[int]) -> tuple[int, list[str], list[str]]:
        """The largest scale at which text and label fit into so many dots of scale 1, and the lines of both."""
        text = drawable(self.text)
        word = min(max(map(len, text.split()), default=0), MAX_WORD)
        for scale in scales:
            columns = max(width // (WIDTH * scale) - 2, 1)
            label = wrap(self.label, columns)
            lines, room = wrap(text, columns), max(height // (HEIGHT * scale) - 2 - len(label), 1)
            if word <= columns and len(label) <= MAX_LABEL_LINES and len(lines) <= room:
                return scale, lines, label
        return scales[-1], truncate(text, columns, room), label
