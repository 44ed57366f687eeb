"""A form from the stored request of an earlier task: the same once more, or with changes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.job import OBJECTS, Endpoint, Job
from kling_callback.jobs.parameters import Choice, ImageInput, Text
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.redact import ADDRESSING, LEFT_OUT
from kling_receiver.web.dashboard.create import fields as create_fields
from kling_receiver.web.dashboard.create.form import Form, default_model

OMITTED = re.compile(r"\([0-9]+ characters, left out\)")
"""What is stored in place of an image, and of a long text (`protocol.redact`)."""
NUMBERED = ("element", "voice")
"""Entries of `contents` whose `id` is numbered unless it is given."""


def form_of_family(family: str) -> Form:
    """An empty form for a family; for one that no typed job has, that of any other job."""
    job = _job_of(family, {})
    if job is None:
        return Form(None, family=family)
    model = family.rpartition("/")[2] if is_new_standard(family) else default_model(job)
    return Form(job, model)


def form_of_request(family: str, request: Any, tags: Sequence[str]) -> Form:
    """A form with the parameters of a stored request. Its `notes` name what was not stored."""
    notes: tuple[str, ...] = ()
    if not isinstance(request, Mapping) or request == LEFT_OUT or not request:
        notes = ("The parameters of this task were not stored. Give them again.",)
        request = {}
    job = _job_of(family, request)
    omitted: list[str] = []
    kept = _without_omitted(request, "", omitted)
    if job is None:
        body = json.dumps(_without_address(kept), indent=2, ensure_ascii=False)
        form = Form(None, family=family, body=body, tags=", ".join(tags), notes=notes)
    else:
        form = _typed(job, family, kept, ", ".join(tags), notes)
    if omitted:
        names = ", ".join(dict.fromkeys(omitted))
        note = f"Not stored with the task, so give it again: {names}."
        return replace(form, notes=(*notes, note))
    return form


def _job_of(family: str, request: Mapping[str, Any]) -> Job | None:
    """The job of a family. Of several, the one that has an image if the request has."""
    jobs = [job for job in JOBS if any(each.family == family for each in job.endpoints)]
    jobs += [job for job in JOBS if is_new_standard(family) and family.rpartition("/")[0] == job.new_path]
    with_image = [job for job in jobs if "image" in request and job.endpoints[0].find("image")]
    return next(iter(with_image or jobs), None)


def _typed(job: Job, family: str, request: Mapping[str, Any], tags: str, notes: tuple[str, ...]) -> Form:
    if is_new_standard(family):
        model = family.rpartition("/")[2]
        endpoint = job.endpoint_of(model)[0]
        values = _new_values(endpoint, request)
    else:
        model = str(request.get("model_name") or request.get("model") or "")
        endpoint = job.endpoint_of(model)[0]
        names = {each.sent_as: each.name for each in endpoint.parameters if each.sent_as}
        values = {names.get(name, name): value for name, value in request.items()}
    values = {name: value for name, value in values.items() if name not in (*ADDRESSING, "model_name", "model")}
    texts, more = {}, {}
    for name, value in values.items():
        parameter = endpoint.find(name)
        if parameter is None:
            more[name] = value
        elif value not in (None, "", [], {}):
            texts[name] = create_fields.texts_of(parameter.kind, value)
    others = json.dumps(more, indent=2, ensure_ascii=False) if more else ""
    return Form(job, model, texts, tags=tags, more=others, notes=notes)


def _new_values(endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in a body of the new standard: the inverse of `Endpoint.body`."""
    values: dict[str, Any] = {}
    by_content = {each.content: each for each in reversed(endpoint.parameters) if each.content}
    unknown = []
    contents = body.get("contents")
    for entry in contents if isinstance(contents, list) else []:
        kind = entry.get("type") if isinstance(entry, Mapping) else None
        parameter = by_content.get(str(kind))
        if parameter is None:
            unknown.append(entry)
            continue
        fields = {name: value for name, value in entry.items() if name != "type"}
        if isinstance(parameter.kind, ImageInput | Text | Choice) or set(fields) <= {"text", "url"}:
            item = fields.get("text") or fields.get("url")
        else:
            item = fields
        if kind in NUMBERED or kind == "refer_image":
            items = values.setdefault(parameter.name, [])
            if kind in NUMBERED and fields.get("id") == f"{kind}_{len(items) + 1}":
                fields.pop("id")
            items.append(item)
        else:
            values[parameter.name] = item
    for name in OBJECTS:
        inner = body.get(name)
        values |= inner if isinstance(inner, Mapping) else {}
    rest = {name: value for name, value in body.items() if name not in (*OBJECTS, "contents")}
    return {**values, **rest, **({"contents": unknown} if unknown else {})}


def _without_address(body: Any) -> Any:
    if not isinstance(body, Mapping):
        return body
    return {name: _without_address(each) for name, each in body.items() if name not in ADDRESSING}


def _without_omitted(value: Any, name: str, omitted: list[str]) -> Any:
    """The value without what was not stored; the names of that are added to `omitted`."""
    if isinstance(value, str) and OMITTED.fullmatch(value):
        omitted.append(name or "the parameters")
        return None
    if isinstance(value, Mapping):
        is_entry = "type" in value and ("url" in value or "text" in value)
        kept = {
            key: _without_omitted(each, str(value["type"]) if is_entry else f"{name}.{key}".lstrip("."), omitted)
            for key, each in value.items()
        }
        kept = {key: each for key, each in kept.items() if each is not None}
        lost = set(value) - set(kept)
        return None if lost and set(kept) <= {"type", "id"} else kept
    if isinstance(value, list):
        return [each for item in value if (each := _without_omitted(item, name, omitted)) is not None]
    return value
