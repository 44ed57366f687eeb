"""Turn pydantic's validation errors into sentences for the sender of a document."""

from pydantic import ValidationError


def describe_errors(error: ValidationError) -> list[str]:
    """All that pydantic found wrong with a document, each with its place."""
    found = []
    for each in error.errors():
        place = ".".join(str(part) for part in each["loc"])
        said = each["msg"].removeprefix("Value error, ").rstrip(".")
        if each["type"] == "extra_forbidden":
            said = "there is nothing of this name"
        stop = "" if said.endswith('"') else "."  # what is to be copied ends as it is
        found.append(f"{place}: {said}{stop}" if place else f"{said[:1].upper()}{said[1:]}{stop}")
    return found
