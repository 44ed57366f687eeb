"""The words in which the interface is described: JSON schemas, parameters, answers."""

from typing import Any

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}
YES_OR_NO: Json = {"type": "boolean"}
TIME: Json = {"type": "string", "format": "date-time"}


def or_null(schema: Json) -> Json:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def record(properties: Json, *, optional: tuple[str, ...] = ()) -> Json:
    """An object; what is not `optional` is always there."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def text(longest: int, *, shortest: int = 0, **more: Any) -> Json:
    """A text of so many characters."""
    return {**TEXT, "maxLength": longest, **({"minLength": shortest} if shortest else {}), **more}


def answer(description: str, schema: Json | None = None, media: str = "application/json") -> Json:
    """One kind of answer."""
    return {"description": description, **({"content": {media: {"schema": schema}}} if schema else {})}


def errors(*statuses: int) -> Json:
    """Answers of the one shape that errors have."""
    return {str(status): answer("an error", {"$ref": "#/components/schemas/Error"}) for status in statuses}


def parameter(place: str, name: str, schema: Json, meaning: str = "") -> Json:
    """A part of a path, a query or a head."""
    return {"in": place, "name": name, "schema": schema, "required": place == "path", "description": meaning}


def reference(name: str) -> Json:
    """A schema of the document, by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def many(items: Json, **more: Any) -> Json:
    """A list."""
    return {"type": "array", "items": items, **more}


def body(schema: Json, *, required: bool = True) -> Json:
    """A request's document."""
    return {"required": required, "content": {"application/json": {"schema": schema}}}
