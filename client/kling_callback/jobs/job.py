"""A typed job: the endpoints at which Kling creates it, the parameters of each, and the body that is sent.

The model's name selects the endpoint. A known model is checked by its own row of the table; of an unknown one only
what cannot be sent is refused.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from kling_callback.errors import ParameterError
from kling_callback.jobs.body import check_depth
from kling_callback.jobs.parameters import (
    AnyValue,
    Choice,
    Integer,
    ListOf,
    Number,
    ParameterType,
    Seconds,
    Text,
)
from kling_callback.jobs.spelling import misspelt
from kling_callback.protocol.families import is_family, is_new_standard
from kling_callback.protocol.redact import is_empty

Values = Mapping[str, Any]

NEW_MODEL = re.compile(r"kling-(\d+\.\d.*|o\d.*)")
"""Names of models in the paths of the new standard, such as kling-3.0-turbo and kling-o1; legacy ones are kling-v3."""

LENIENT = (Choice, Integer, ListOf, Number, Seconds, Text)
"""Types whose limits are those of known models: a newer model may have others."""

IN_OPTIONS = ("external_task_id", "callback_url", "watermark_info")
"""Parameters of the new standard that are in `options`; all others that are no content are in `settings`."""
OBJECTS = ("settings", "options")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. `name`: of the method and the option; `sent_as`: Kling's, if it differs.

    `content`: the type of its entries in `contents`, for parameters of the new standard that are sent there.
    """

    name: str
    kind: ParameterType
    help: str
    required: bool = False
    content: str = ""
    sent_as: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule about several parameters. `problem`: what to do instead; `broken`: whether the values break it."""

    problem: str
    broken: Callable[[Values], bool]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path at Kling. `models`: those that it is known for; `refused`: parameters with the reason why not.

    `replaced`: parameters that its models lack, with the one to use instead.
    """

    family: str
    models: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    rules: tuple[Rule, ...] = ()
    refused: Mapping[str, str] | None = None
    replaced: Mapping[str, str] | None = None

    def find(self, name: str) -> Parameter | None:
        """The parameter of this name, or None."""
        return next((each for each in self.parameters if each.name == name), None)

    def body(self, values: Values) -> dict[str, Any]:
        """The body of checked values."""
        if is_new_standard(self.family):
            return self._new_body(values)
        return {self._sent_as(name): value for name, value in values.items()}

    def _sent_as(self, name: str) -> str:
        parameter = self.find(name)
        return (parameter.sent_as if parameter else "") or name

    def _new_body(self, values: Values) -> dict[str, Any]:
        body: dict[str, Any] = {"contents": [], "settings": {}, "options": {}}
        for name, value in values.items():
            parameter = self.find(name)
            if parameter and parameter.content:
                body["contents"] += _entries(parameter.content, value)
            elif name in OBJECTS and isinstance(value, Mapping):
                body[name].update(value)
            elif name == "contents" and isinstance(value, list):
                body["contents"] += value
            elif name == "prompt":
                body["prompt"] = value
            elif name != "model_name":
                body["options" if name in IN_OPTIONS else "settings"][name] = value
        return {name: value for name, value in body.items() if value}


def _entries(kind: str, value: Any) -> list[dict[str, Any]]:
    """The entries of `contents` for one parameter. Each element and voice needs an `id`, by which prompts name it."""
    entries = []
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        fields = dict(item) if isinstance(item, Mapping) else {"text" if kind == "prompt" else "url": item}
        if kind in ("element", "voice"):
            fields.setdefault("id", f"{kind}_{number}")
        entries.append({"type": kind, **fields})
    return entries


@dataclass(frozen=True, slots=True)
class Job:
    """One kind of job. `endpoints`: the first one is used without a model, and for unknown models of the legacy API.

    `new_path`: the path of the new standard before the model's name; "" if it has none.
    """

    name: str
    summary: str
    endpoints: tuple[Endpoint, ...]
    new_path: str = ""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of all endpoints, each once, as the first endpoint that has it describes it."""
        parameters: dict[str, Parameter] = {}
        for parameter in (each for endpoint in self.endpoints for each in endpoint.parameters):
            parameters.setdefault(parameter.name, parameter)
        return tuple(parameters.values())

    def create(self, values: Values) -> tuple[str, dict[str, Any]]:
        """The family and the body to send: the values checked, None and empty ones left out.

        Blocks to read image files. Raises ParameterError with all problems.
        """
        check_depth(values)
        present = {name: value for name, value in values.items() if not is_empty(value)}
        model = str(present.get("model_name") or "")
        endpoint, known = self.endpoint_of(model)
        problems = [
            *self._missing(endpoint, present),
            *(rule.problem for rule in endpoint.rules if rule.broken(present)),
            *self._refused(endpoint, present, known, model),
            *misspelt(present, {each.name for each in self.parameters}),
        ]
        checked = {}
        for name, value in present.items():
            parameter = endpoint.find(name)
            try:
                checked[name] = _check(parameter.kind if parameter else AnyValue(), value, known)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ParameterError(problems)
        return endpoint.family, endpoint.body(checked)

    def endpoint_of(self, model: str) -> tuple[Endpoint, bool]:
        """The endpoint for a model, and whether the table knows the model. "" is no model, and known."""
        for endpoint in self.endpoints:
            if model in endpoint.models:
                return endpoint, True
        family = f"{self.new_path}/{model}"
        if self.new_path and NEW_MODEL.fullmatch(model) and is_family(family):
            new = [each for each in self.endpoints if is_new_standard(each.family)]
            parameters = Job(self.name, self.summary, tuple(new)).parameters
            return replace(new[0], family=family, parameters=parameters, rules=()), False
        return self.endpoints[0], not model

    def _missing(self, endpoint: Endpoint, present: Values) -> Iterator[str]:
        for parameter in endpoint.parameters:
            if parameter.required and parameter.name not in present:
                yield f"{parameter.name}: is missing. {parameter.help}"

    def _refused(self, endpoint: Endpoint, present: Values, known: bool, model: str) -> Iterator[str]:
        refused = endpoint.refused or {}
        yield from (f"{name}: {reason}" for name, reason in refused.items() if name in present)
        if not known:
            return
        elsewhere = {each.name for each in self.parameters} - {each.name for each in endpoint.parameters}
        for name in present:
            if name in elsewhere and name not in refused:
                instead = (endpoint.replaced or {}).get(name, "")
                yield f"{name}: {model or endpoint.family} has none.{f' Use {instead}.' if instead else ''}"


def _check(kind: ParameterType, value: Any, known: bool) -> Any:
    """The value to send. A value outside the limits of the known models is sent unchanged to an unknown one."""
    try:
        return kind.check(value)
    except ValueError:
        has_limits = isinstance(kind, LENIENT) and (isinstance(value, str) or not isinstance(kind, Text))
        if known or not has_limits or not _is_json(value):
            raise
        return value


def _is_json(value: Any) -> bool:
    """Whether a value can be sent as it is: no file in it."""
    if isinstance(value, Mapping):
        return all(map(_is_json, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return isinstance(value, str | int | float)
