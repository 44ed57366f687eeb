"""A font of 5 by 7 dots for ASCII, and how a text becomes lines of it. What it cannot draw is a hollow box."""

import textwrap
import unicodedata

WIDTH, HEIGHT = 6, 9
"""Dots of a character's cell: one more than its 5 to the right, two more than its 7 below."""

DOTS = """
0000000 4444404 AAA0000 AAVAVAA 4FKE5U4 OP248J3 CIK8LID 4480000 2488842 8422248 04LEL40 044V440 0000C48 000V000 00000CC
01248G0 EHJLPHE 4C4444E EH1248V V2421HE 26AIV22 VGU11HE 68GUHHE V124888 EHHEHHE EHHF12C 0CC0CC0 0CC0C48 248G842 00V0V00
G84248G EH12404 EH1DLLE EHHVHHH UHHUHHU EHGGGHE SIHHHIS VGGUGGV VGGUGGG EHGNHHF HHHVHHH E44444E 72222IC HIKOKIH GGGGGGV
HRLLHHH HHPLJHH EHHHHHE UHHUGGG EHHHLID UHHUKIH FGGE11U V444444 HHHHHHE HHHHHA4 HHHLLLA HHA4AHH HHHA444 V1248GV E88888E
0G84210 E22222E 4AH0000 000000V 8420000 00E1FHF GGMPHHU 00EGGHE 11DJHHF 00EHVGE 698S888 0FHHF1E GGMPHHH 40C444E 20622IC
GGIKOKI C44444E 00QLLHH 00MPHHH 00EHHHE 00UHUGG 00DJF11 00MPGGG 00EGE1U 88S8896 00HHHJD 00HHHA4 00HHLLA 00HA4AH 00HHF1E
00V248V 2448442 4444444 8442448 008L200
"""
"""The characters from the blank to the tilde: seven rows each, a row of five dots as a digit in base 32."""

BOX = (31, 17, 17, 17, 17, 17, 31)
GLYPHS = {chr(code): tuple(int(row, 32) for row in rows) for code, rows in enumerate(DOTS.split(), ord(" "))}
"""For each character seven numbers of five bits, the leftmost dot first."""

LIKE = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "。": ".", "、": ","})
UNKNOWN = "\0"
"""Stands for a character that is not in the font."""


def glyph(character: str) -> tuple[int, ...]:
    """The rows of a character."""
    return GLYPHS.get(character, BOX)


def drawable(text: str) -> str:
    """A text in the characters of the font: without accents, in other characters of the same meaning, or boxes."""
    plain = unicodedata.normalize("NFKD", text.translate(LIKE))
    shown = (character for character in plain if not unicodedata.combining(character))
    return "".join(" " if each.isspace() else each if each in GLYPHS else UNKNOWN for each in shown)


def wrap(text: str, columns: int) -> list[str]:
    """The lines of a text."""
    return textwrap.wrap(text, columns)


def truncate(text: str, columns: int, lines: int) -> list[str]:
    """As many lines of a text as there is room for; the last one ends with dots if there are more."""
    return textwrap.wrap(text, max(columns, 3), max_lines=lines, placeholder="...")
