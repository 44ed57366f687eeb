"""The form of a job and a model: its fields, what is wrong with them, the request to send, and its price.

The checks are the client's own (`prepare_job`) and those of `POST /api/tasks` (`make_submission`).
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from kling_callback.errors import ParameterError, ProblemCollector
from kling_callback.jobs.body import model_of
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.job import Endpoint, Job, Parameter
from kling_callback.jobs.parameters import CameraControl, embedded
from kling_callback.jobs.prices import Estimate, estimate
from kling_callback.jobs.untyped import prepare, prepare_job
from kling_callback.protocol.values import sanitize
from kling_receiver.settings import ReceiverSettings
from kling_receiver.validation import describe_errors
from kling_receiver.web.api.submission import SubmissionBody, make_submission
from kling_receiver.web.dashboard.create import fields as create_fields
from kling_receiver.web.dashboard.create.fields import Field, Invalid

PREFIX = "p."
"""Before the name of a parameter, in the names of the form's fields."""
OTHER_JOB = "other"
"""The choice of a job that the table does not have."""
OWN_FIELDS = ("tags", "external_task_id", "more", "family", "body")
"""The fields that are no parameters of a typed job."""
ALIASES = {"model": "model_name"}
"""Names in messages, by which the form has another one."""


def job_named(name: str) -> Job | None:
    """The typed job of a name; None for any other."""
    return next((job for job in JOBS if job.name == name), None)


def models_of(job: Job) -> list[tuple[str, list[str]]]:
    """The models that a job is known for, newest first, by the standard whose parameters they have."""
    legacy = [model for endpoint in job.endpoints if not endpoint.family.startswith("/") for model in endpoint.models]
    new = [model for endpoint in job.endpoints if endpoint.family.startswith("/") for model in endpoint.models]
    groups = [("Usual parameters", legacy[::-1]), ("Parameters of the new standard", new)]
    return [(name, models) for name, models in groups if models]


def default_model(job: Job) -> str:
    """The newest model of the job's usual endpoint."""
    return job.endpoints[0].models[-1]


@dataclass(frozen=True, slots=True)
class Form:
    """What was typed. `job`: None for a job that the table does not have, which has `family` and `body` instead.

    `texts`: of parameters, by name. `more`: JSON of parameters that have no field. `notes`: what to do about it first.
    `is_other_model`: whether the model's name is to be typed.
    """

    job: Job | None
    model: str = ""
    texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    family: str = ""
    body: str = ""
    tags: str = ""
    external_task_id: str = ""
    more: str = ""
    notes: tuple[str, ...] = ()
    is_other_model: bool = False

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of a typed job."""
        assert self.job is not None
        return self.job.endpoint_of(self.model)[0]

    @property
    def has_other_model(self) -> bool:
        """Whether the model is one that the list of models does not have."""
        known = self.job is not None and any(self.model in models for _, models in models_of(self.job))
        return not known and (self.is_other_model or bool(self.model))

    def fields(self) -> list[Field]:
        """The fields of the parameters that the model has, and of those that have a value although it has none."""
        if self.job is None:
            return []
        shown = create_fields.shown_parameters(self.endpoint)
        names = {each.name for each in shown}
        foreign = [each for each in self._parameters().values() if each.name not in names and self.has(each.name)]
        return [create_fields.make_field(each, self.texts.get(each.name, ())) for each in (*shown, *foreign)]

    def names(self) -> list[str]:
        """The names of all fields."""
        own = ("model_name", "more") if self.job else ("family", "body")
        return [*own, "tags", "external_task_id", *(each.name for each in self.fields())]

    def _parameters(self) -> dict[str, Parameter]:
        """Every parameter that the job has at any model, but the model; the model's own ones as it has them."""
        assert self.job is not None
        found: dict[str, Parameter] = {}
        for each in (*self.endpoint.parameters, *self.job.parameters):
            found.setdefault(each.name, each)
        return {name: each for name, each in found.items() if name != "model_name"}

    def values(self) -> tuple[dict[str, Any], list[str]]:
        """The values for the table of jobs, and the problems of what cannot be read."""
        values: dict[str, Any] = {"model_name": self.model} if self.model else {}
        problems = []
        for name, parameter in self._parameters().items():
            try:
                value = create_fields.parse(parameter.kind, self.texts.get(name, ()))
            except Invalid as error:
                problems.append(f"{name}: {error}")
                continue
            if value is not None:
                values[name] = value
        more, trouble = _object("more", self.more)
        return {**values, **more}, problems + trouble

    def has(self, name: str) -> bool:
        """Whether a field has a value."""
        if name == "model_name":
            return bool(self.model)
        own = getattr(self, name) if name in OWN_FIELDS else "".join(self.texts.get(name, ()))
        return bool(own.strip())

    def for_job(self, job: Job | None) -> "Form":
        """The form of another job, with the model and the values that it accepts too."""
        known = job is not None and any(self.model in models for _, models in models_of(job))
        model = self.model if known else default_model(job) if job else ""
        form = Form(job, model, tags=self.tags, external_task_id=self.external_task_id)
        if job is None or self.job is None:
            return form
        kept = {
            each.name: self.texts[each.name]
            for each in form.endpoint.parameters
            if each.name in self.texts and _accepts(each, _readable(each, self.texts[each.name]))
        }
        return replace(form, texts=kept)


@dataclass(frozen=True, slots=True)
class Checked:
    """A checked form. `problems`: by field; `others`: those of no field; `request`: for `POST /api/tasks`, or None.

    `cost`: what it would cost; None if no price is known, for the reason `priceless`.
    """

    problems: Mapping[str, list[str]] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    request: Mapping[str, Any] | None = None
    cost: Estimate | None = None
    priceless: str = ""

    @property
    def count(self) -> int:
        """The number of problems."""
        return len({text for texts in self.problems.values() for text in texts}) + len(self.others)


def check(form: Form, settings: ReceiverSettings, *, everything: bool) -> Checked:
    """Check a form as the client and `POST /api/tasks` do. Blocks.

    `everything`: also say what is missing, which nobody wants to read who has not typed it yet.
    """
    problems = ProblemCollector()
    family, body = form.endpoint.family if form.job else form.family.strip(), dict[str, Any]()
    unread: list[str] = []
    with problems:
        family, body, unread = _prepare(form)
    with problems:
        if unread:
            raise ParameterError(unread)
    request = {"family": family, "body": body} | _own(form)
    with problems:
        _check_submission(request, settings)
    found: list[str] = []
    try:
        problems.raise_all()
    except ParameterError as error:
        found = [sanitize(each) for each in error.problems]
    cost, priceless = _price(form, family, body)
    by_field, others = _attribute(form, found, everything=everything)
    return Checked(by_field, tuple(others), None if found else request, cost, priceless)


def idempotency_key(nonce: str, request: Mapping[str, Any]) -> str:
    """The Idempotency-Key of a request: the same for each resend from one form. `nonce`: the form's."""
    text = json.dumps([nonce, request], sort_keys=True)
    return f"form-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()}"


def _prepare(form: Form) -> tuple[str, dict[str, Any], list[str]]:
    """The family, the body, and the problems of what cannot be read. Raises ParameterError."""
    if form.job is None:
        body, problems = _object("body", form.body)
        family = form.family.strip()
        return family, {} if problems else prepare(family, body, local_files=False), problems
    values, problems = form.values()
    unread = {problem.partition(":")[0] for problem in problems}
    try:
        family, body = prepare_job(form.job, values, local_files=False)
    except ParameterError as error:
        about_others = [each for each in error.problems if unread.isdisjoint(_names(each))]
        raise ParameterError([*problems, *about_others]) from None
    return family, body, problems


def _own(form: Form) -> dict[str, Any]:
    own: dict[str, Any] = {}
    if tags := [tag.strip() for tag in form.tags.replace("\n", ",").split(",") if tag.strip()]:
        own["tags"] = tags
    if form.external_task_id.strip():
        own["external_task_id"] = form.external_task_id.strip()
    return own


def _check_submission(request: Mapping[str, Any], settings: ReceiverSettings) -> None:
    """Check what `POST /api/tasks` checks. Raises ParameterError with all problems."""
    problems = ProblemCollector()
    valid = dict(request)
    try:
        SubmissionBody.model_validate(request)
    except ValidationError as error:
        with problems:
            raise ParameterError(describe_errors(error)) from None
        wrong = {each["loc"][0] for each in error.errors()}
        valid = {name: value for name, value in request.items() if name not in wrong}
    with problems:
        make_submission(SubmissionBody.model_validate({"family": "", "body": {}} | valid), "", settings)
    problems.raise_all()


def _price(form: Form, family: str, body: Mapping[str, Any]) -> tuple[Estimate | None, str]:
    """The price; while the form is incomplete, of the values that can be sent already."""
    if form.job and not body:
        values, _ = form.values()
        valid = {name: value for name, value in values.items() if _accepts(form.endpoint.find(name), value)}
        family, body = form.endpoint.family, form.endpoint.body(valid)
    if not family:
        return None, "Give the path at Kling first."
    cost = estimate(family, body)
    model = model_of(family, body)
    priced = f"{model} at {family}" if model else f"{family} without a model"
    return cost, "" if cost else sanitize(f"No list price is known for {priced}.")


def _accepts(parameter: Parameter | None, value: Any) -> bool:
    """Whether a value can be sent. No text is taken for the name of a file."""
    try:
        return parameter is not None and parameter.kind.check(embedded(parameter.kind, value)) is not None
    except ValueError:
        return False


def _readable(parameter: Parameter, texts: Sequence[str]) -> Any:
    """The value of what was typed; None if it cannot be read."""
    try:
        return create_fields.parse(parameter.kind, texts)
    except Invalid:
        return None


def _object(name: str, text: str) -> tuple[dict[str, Any], list[str]]:
    """A JSON object that was typed, and what is wrong with it."""
    if not text.strip():
        return {}, []
    try:
        value = create_fields.parse(CameraControl(), [text])
    except Invalid as error:
        return {}, [f"{name}: {error}"]
    return (value, []) if isinstance(value, dict) else ({}, [f"{name}: must be a JSON object."])


def _names(problem: str) -> list[str]:
    """The names at the beginning of a problem: `a, b: exclude each other`."""
    start, colon, _ = problem.partition(": ")
    names = [name.partition(".")[0] for name in start.split(", ")]
    return [ALIASES.get(name, name) for name in names] if colon and all(" " not in name for name in names) else []


def _attribute(form: Form, found: Iterable[str], *, everything: bool) -> tuple[dict[str, list[str]], list[str]]:
    """The problems by field, and those of none."""
    fields = form.names()
    by_field: dict[str, list[str]] = {}
    others = []
    for problem in found:
        names = [name if name != "family" or form.job is None else "model_name" for name in _names(problem)]
        named = [name for name in names if name in fields]
        filled = [name for name in named if form.has(name)]
        if named and not filled and not everything:
            continue
        for name in filled or named[:1]:
            by_field.setdefault(name, []).append(_sentence(problem, names))
        if not named:
            others.append(problem)
    return by_field, others


def _sentence(problem: str, names: list[str]) -> str:
    """The problem beside its field, which need not name it."""
    text = problem.partition(": ")[2] if len(names) == 1 else problem
    return text if text.startswith("kling-") else f"{text[:1].upper()}{text[1:]}"
