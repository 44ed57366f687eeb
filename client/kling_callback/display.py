"""Results as HTML, for notebooks."""

import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any

MAX_INLINE_BYTES = 32 << 20
"""Bytes of a file that is put into a notebook; of a larger one the notebook has a link."""

STYLE = 'style="max-width: 100%; max-height: 40em"'
MEDIA = {
    "image": '<img src="{src}" alt="{name}" {style}>',
    "video": '<video src="{src}" controls {style}></video>',
    "audio": '<audio src="{src}" controls></audio>',
}
LINK = '<a href="{src}">{name}</a>'


def data_url(content: bytes, content_type: str) -> str:
    """A file as an address that holds its content."""
    return f"data:{content_type};base64,{b64encode(content).decode()}"


def is_media(content_type: str | None) -> bool:
    """Whether a browser shows or plays files of this media type."""
    return (content_type or "").partition("/")[0] in MEDIA


def file_html(src: str | None, content_type: str | None, name: str) -> str:
    """The element that shows or plays a file; a link for any other file, its name without an address."""
    if not src:
        return escape(name)
    element = MEDIA.get((content_type or "").partition("/")[0], LINK)
    return element.format(src=escape(src), name=escape(name), style=STYLE)


def result_html(files: Sequence[str], outputs: Sequence[dict[str, Any]]) -> str:
    """Files, each as HTML, one below the other, and outputs that are no files, as JSON."""
    parts = [f"<div>{each}</div>" for each in files]
    parts += [f"<pre>{escape(json.dumps(each, ensure_ascii=False, indent=2))}</pre>" for each in outputs]
    return "".join(parts)
