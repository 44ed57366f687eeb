"""What the doctor's requests are known by, and how the routes of callbacks and links answer them."""

DOCTOR_FAMILY = "(doctor)"
"""The family in a callback token of `kling-receiver doctor`: the route only echoes its id. No task has this family."""
DOCTOR_TASK = "~doctor"
"""The task of the links that `kling-receiver doctor` signs: the route only echoes their number. No task has this id."""


def doctor_answer(nonce: str) -> dict[str, str]:
    """The response to the doctor: the nonce proves that this receiver answered."""
    return {"doctor": nonce}
