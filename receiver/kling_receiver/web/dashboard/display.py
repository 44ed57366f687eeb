"""What the pages show of values: filters of the templates, and texts of a task's request."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from kling_callback.batch.costs import ChargeSum
from kling_receiver.events.payloads import iso
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.task_list import prompt_texts

STATUS_ICONS: Mapping[str, str] = {
    "created": "○",
    "queued": "◔",
    "submitted": "◑",
    "processing": "◕",
    "succeed": "✓",
    "failed": "✕",
}
"""A status is never shown by its colour alone."""
MAX_PRETTY_CHARS = 50_000
"""Characters of a JSON document with indentation. Of Kling's bodies none has a tenth of it."""
INDENTED = json.JSONEncoder(indent=2, ensure_ascii=False)


def status_of(detail: TaskDetail) -> str:
    """The status that is shown of a task: `queued` while it waits for a slot."""
    return "queued" if detail.queue_position else detail.row["status"]


def prompt_of(request: Any) -> str:
    """The prompts in a request, the first first; "" for none."""
    return " / ".join(text for text in prompt_texts(request) if text.strip())


def cost_text(cost: Any) -> str:
    """A task's cost as Kling reported it, in one line; "" if it reported none.

    With its units, as `kling list` shows it: `3.5 units`. A cost in an unknown form is shown as it came.
    """
    if cost in (None, "", [], {}):
        return ""
    charges = ChargeSum()
    charges.add("", cost)
    if text := str(charges):
        return text.replace(" image unit", " unit").replace(" video unit", " unit")
    return cost if isinstance(cost, str) else json.dumps(cost, ensure_ascii=False)


def bytes_text(size: int | None) -> str:
    """A number of bytes as people read it: `1.4 MB`; "" for None."""
    if size is None:
        return ""
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"


def duration_text(milliseconds: float | None) -> str:
    """A duration as people read it: `850 ms`, `4.2 s`, `3 min 5 s`, `2 h 10 min`; "" for None."""
    if milliseconds is None:
        return ""
    if milliseconds < 1000:
        return f"{max(milliseconds, 0):.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for size, unit, part, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def seconds_text(seconds: float) -> str:
    """A number of seconds as people read it: `30 s`, `15 min`, `8 h`."""
    return duration_text(seconds * 1000).replace(".0 s", " s")


def share_text(part: int, whole: int) -> str:
    """A share in per cent: `98.2 %`. It is 0 or 100 only if it is exactly that; "–" of nothing."""
    if not whole:
        return "–"
    if part in (0, whole):
        return f"{100 * part // whole} %"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def plain_number(number: float) -> str:
    """A number without needless zeros: `5`, `0.5`."""
    return f"{number:g}" if number < 1e6 else str(number).removesuffix(".0")


def pretty(value: Any) -> str:
    """A JSON document with indentation; one whose indentation would be long has none.

    Indentation grows with the square of the depth: 16 kB of brackets, which anybody may send, would become 12 MB.
    """
    size, chunks = 0, list[str]()
    for chunk in INDENTED.iterencode(value):
        size += len(chunk)
        if size > MAX_PRETTY_CHARS:
            return json.dumps(value, ensure_ascii=False)
        chunks.append(chunk)
    return "".join(chunks)


FILTERS: dict[str, Callable[..., Any]] = {
    "iso": iso,
    "prompt": prompt_of,
    "cost": cost_text,
    "bytes": bytes_text,
    "duration": duration_text,
    "seconds": seconds_text,
    "plain": plain_number,
    "share": share_text,
    "pretty": pretty,
    "icon": lambda status: STATUS_ICONS.get(status, "•"),
}
"""The filters of the templates, by name."""
