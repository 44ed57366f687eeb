"""The error tree: the attributes that callers rely on."""

import inspect
import pickle

import pytest

from kling_callback import errors

TREE = [line.rpartition("─ ")[2].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line]
CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and issubclass(each, errors.KlingError) and not name.startswith("_")
}


def test_the_drawing_names_every_error() -> None:
    """The tree at the top of the module has each class once, and no other."""
    assert sorted([*TREE, "KlingError"]) == sorted(CLASSES)


@pytest.mark.parametrize("kind", [errors.NotCreated, errors.CreateUnknown, errors.ReceiverError])
def test_an_error_carries_what_a_caller_branches_on(kind: type[errors.KlingError]) -> None:
    """Code, HTTP status, request id, retryable and hint are attributes."""
    error = kind("It broke.", code=1302, http_status=429, request_id="r", retryable=True, hint="Wait.")
    assert (error.code, error.http_status, error.request_id, error.retryable) == (1302, 429, "r", True)
    assert str(error) == "It broke. Wait."


def test_a_create_error_says_its_outcome() -> None:
    """The class has the outcome; it is None for errors that are not about a create."""
    assert errors.NotCreated("").outcome == "not_created"
    assert errors.ParameterError(["a"]).outcome == "not_created"
    assert errors.CreateUnknown("").outcome == "unknown"
    assert errors.ReceiverError("").outcome is None


def test_several_problems_are_reported_at_once() -> None:
    """An error of settings or parameters lists all its problems, one per line."""
    error = errors.SettingsError(["one", "two"])
    assert error.problems == ["one", "two"]
    assert str(error) == "one\ntwo"


@pytest.mark.parametrize(
    "error",
    [
        errors.ParameterError(["one", "two"]),
        errors.TaskFailed("no", task={"id": "a"}),
        errors.NotCreated("no", code=1302, retry_after=2.0),
    ],
)
def test_an_error_survives_another_process(error: errors.KlingError) -> None:
    """Pickled and unpickled, as process pools do, an error keeps its attributes."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (type(error), vars(error), str(error))


def test_an_error_about_a_task_has_its_json() -> None:
    """TaskFailed, ResultFailed and WaitTimeout have the task's JSON, an empty one if there is none."""
    assert errors.TaskFailed("no", task={"id": "a"}).task == {"id": "a"}
    assert errors.WaitTimeout("late").task == {}


def test_problems_of_several_checks_are_one_error() -> None:
    """In their order, each once; other errors are not held back."""
    collector = errors.ProblemCollector()
    collector.raise_all()
    with collector:
        raise errors.SettingsError(["a", "b"])
    with pytest.raises(errors.SettingsError) as settings:
        collector.raise_all()
    with collector:
        raise errors.ParameterError(["c", "a"])
    with pytest.raises(errors.ParameterError) as both:
        collector.raise_all()
    assert (settings.value.problems, both.value.problems) == (["a", "b"], ["a", "b", "c"])
    with pytest.raises(errors.KlingError), collector:
        raise errors.KlingError("other")
