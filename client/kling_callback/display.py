"""What people see: text and JSON that cannot control a terminal, and results as HTML, for notebooks."""

import json
import logging
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape as quoted
from typing import Any

from kling_callback.protocol.nesting import MAX_ANSWER_DEPTH, is_deeper

MAX_INLINE_BYTES = 32 << 20
"""Bytes of a file that is put into a notebook; of a larger one the notebook has a link."""

MASK = "***"
"""What is shown of a secret."""
MIN_MASKED_CHARS = 8
"""Characters of a secret that is masked wherever it stands: a shorter one may be any word."""

STYLE = 'style="max-width: 100%; max-height: 40em"'
MEDIA = {
    "image": '<img src="{src}" alt="{name}" {style}>',
    "video": '<video src="{src}" controls {style}></video>',
    "audio": '<audio src="{src}" controls></audio>',
}
LINK = '<a href="{src}">{name}</a>'
ADDRESS = re.compile(r"https?://|data:(image|video|audio)/", re.IGNORECASE)
"""The beginning of an address that shows a file: any other scheme may run a script."""

CONTROL_CHARACTERS = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that move a cursor or reverse the writing direction, and surrogates; line ends are handled apart."""


def escape(value: Any) -> str:
    """Text on one line with its control characters visible: a status message must not control the terminal."""
    return CONTROL_CHARACTERS.sub(lambda match: f"\\x{ord(match.group()):02x}", " ".join(str(value).splitlines()))


def counted(number: int, noun: str) -> str:
    """A number of things: `1 file`, `2 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


class Mask:
    """Replaces secrets in a text by `***`: long ones wherever they stand, shorter ones in quotation marks only."""

    def __init__(self, secrets: Iterable[str]) -> None:
        distinct = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        long = [rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in distinct if len(secret) >= MIN_MASKED_CHARS]
        quoted = [rf"(?<=['\"]){re.escape(secret)}(?=['\"])" for secret in distinct]
        self._pattern = re.compile("|".join([*long, *quoted])) if distinct else None

    def __call__(self, text: str) -> str:
        """The text without the secrets."""
        return self._pattern.sub(MASK, text) if self._pattern else text


class _OneLine(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = escape(record.getMessage()), ()
        return True


def logger(name: str) -> logging.Logger:
    """The logger of a module of the client: each message is one line, whatever answers it quotes.

    The program that uses the client chooses the format of its log.
    """
    log = logging.getLogger(name)
    log.addFilter(ONE_LINE)
    return log


ONE_LINE = _OneLine()


def json_text(document: Any, *, pretty: bool = False) -> str:
    """JSON with its control characters escaped: on one line, or indented if `pretty` and not too deep for it."""
    indent = 2 if pretty and not is_deeper(document, MAX_ANSWER_DEPTH) else None
    text = json.dumps(document, ensure_ascii=False, indent=indent)
    return CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def data_url(content: bytes, content_type: str) -> str:
    """A file as an address that holds its content."""
    return f"data:{content_type};base64,{b64encode(content).decode()}"


def is_media(content_type: str | None) -> bool:
    """Whether a browser shows or plays files of this media type."""
    return (content_type or "").partition("/")[0] in MEDIA


def file_html(src: str | None, content_type: str | None, name: str) -> str:
    """The element that shows or plays a file; a link for any other file, its name without a usable address."""
    if not src or not ADDRESS.match(src):
        return quoted(escape(name))
    element = MEDIA.get((content_type or "").partition("/")[0], LINK)
    return element.format(src=quoted(escape(src)), name=quoted(escape(name)), style=STYLE)


def result_html(files: Sequence[str], outputs: Sequence[dict[str, Any]]) -> str:
    """Files, each as HTML, one below the other, and outputs that are no files, as JSON."""
    parts = [f"<div>{each}</div>" for each in files]
    parts += [f"<pre>{quoted(json_text(each, pretty=True))}</pre>" for each in outputs]
    return "".join(parts)
