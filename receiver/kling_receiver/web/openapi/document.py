"""The OpenAPI document: paths from `paths`, schemas from the models that validate requests and type responses."""

import functools
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from kling_receiver import __version__
from kling_receiver.events.payloads import EventJson
from kling_receiver.hooks.config import HookConfig
from kling_receiver.tasks.registration import Registration
from kling_receiver.web.api.access import AuditPageJson, NewToken, RevokedJson, TokenJson, TokenListJson
from kling_receiver.web.api.actions import ActionJson, AdoptedJson, Adoption
from kling_receiver.web.api.deliveries import Replay, Retry
from kling_receiver.web.api.hook_payloads import (
    DeliveryJson,
    DeliveryPageJson,
    HookListJson,
    HookSecretJson,
    OutcomeJson,
    RemovedJson,
    ReplayedJson,
    RetriedJson,
)
from kling_receiver.web.api.hooks import HookChanges, HookTest, Pause, Rotation
from kling_receiver.web.api.submission import SubmissionBody
from kling_receiver.web.api.tasks import RegisteredJson, TaskPageJson
from kling_receiver.web.doctor import DoctorJson
from kling_receiver.web.errors import ErrorJson
from kling_receiver.web.openapi import compat
from kling_receiver.web.openapi.paths import PATHS, Json

REQUESTS: dict[str, Any] = {
    "Registration": Registration,
    "Submission": SubmissionBody,
    "Adoption": Adoption,
    "NewHook": HookConfig,
    "Rotation": Rotation,
    "HookTest": HookTest,
    "HookChanges": HookChanges,
    "Pause": Pause,
    "Replay": Replay,
    "Retry": Retry,
    "NewToken": NewToken,
}
RESPONSES = (
    *(EventJson, RegisteredJson, TaskPageJson, ActionJson, AdoptedJson, ErrorJson),
    *(HookListJson, HookSecretJson, RemovedJson, OutcomeJson),
    *(DeliveryJson, DeliveryPageJson, RetriedJson, ReplayedJson),
    *(TokenJson, TokenListJson, RevokedJson, AuditPageJson, DoctorJson),
)
"""Response types. The types inside them, such as TaskJson, become schemas of their own."""


class _Generator(GenerateJsonSchema):
    """Names schemas without the suffix `Json` of their types, and leaves out titles, which repeat the names."""

    def normalize_name(self, name: str) -> str:
        return super().normalize_name(name).removesuffix("Json")

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@functools.cache
def schemas() -> Json:
    """The schema of each request and response, by name. Takes 60 ms the first time: call it beside the event loop."""
    types = REQUESTS | {type_.__name__.removesuffix("Json"): type_ for type_ in RESPONSES}
    components: Json = {}
    for name, type_ in types.items():
        template = "#/components/schemas/{model}"
        schema = TypeAdapter(type_).json_schema(ref_template=template, schema_generator=_Generator)
        components |= {**schema.pop("$defs", {}), name: schema}
    for schema in components.values():
        schema.pop("title", None)
    return components


def document(receiver_url: str, *, with_compat: bool = False) -> Json:
    """The OpenAPI 3.1 document. The first call takes 60 ms: call it beside the event loop.

    `with_compat`: with Kling's own API, which the receiver serves if KLING_COMPAT_API is on.
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kling Callback receiver", "version": __version__},
        "servers": [{"url": receiver_url}],
        "security": [{"bearer": []}],
        "paths": {**PATHS, **(compat.PATHS if with_compat else {})},
        "components": {
            "schemas": {**schemas(), **(compat.SCHEMAS if with_compat else {})},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
