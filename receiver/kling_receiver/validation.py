"""Turn pydantic's validation errors into sentences for the sender of a document."""

from pydantic import ValidationError


def describe_errors(error: ValidationError) -> list[str]:
    """One sentence for each problem in a document, with the path of its field."""
    sentences = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ").rstrip(".")
        if problem["type"] == "extra_forbidden":
            message = "unknown field"
        stop = "" if message.endswith('"') else "."  # a quoted example at the end can be copied as it is
        sentences.append(f"{path}: {message}{stop}" if path else f"{message[:1].upper()}{message[1:]}{stop}")
    return sentences
