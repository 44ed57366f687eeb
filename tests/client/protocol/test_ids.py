"""Task ids: increasing, unique, and safe in addresses and file names."""

from hypothesis import given
from hypothesis import strategies as st

from kling_callback.protocol.ids import is_id, new_id


def test_new_ids_are_ids_and_differ() -> None:
    """Ids made at one moment are all different, 26 characters long, and accepted as ids."""
    made = {new_id(1_700_000_000.0) for _ in range(1000)}
    assert len(made) == 1000
    assert all(is_id(each) and len(each) == 26 for each in made)


@given(st.floats(0, 4e9), st.floats(0, 4e9))
def test_ids_increase_with_time(one: float, other: float) -> None:
    """An id made at least a millisecond later is greater, whatever its random part."""
    early, late = sorted((one, other))
    if int(early * 1000) < int(late * 1000):
        assert new_id(early, random=lambda n: b"\xff" * n) < new_id(late, random=lambda n: b"\0" * n)


def test_the_clock_is_the_default_time() -> None:
    """Without a time an id is of now: after one of a year ago, before one of the year 2100."""
    assert new_id(1_700_000_000) < new_id() < new_id(4_102_444_800)


def test_a_callers_own_id_may_be_a_plain_name() -> None:
    """Order numbers and the like are ids."""
    assert all(is_id(text) for text in ("order-42", "a", "A.b_c:d@e=f", "0" * 128))


def test_a_text_that_could_leave_an_address_or_folder_is_not_an_id() -> None:
    """Slashes, leading dots, blanks, line ends, other alphabets and long texts are refused."""
    bad = ("", "a/b", "../a", ".a", "-a", "a b", "a\n", "ä", "a?b", "a#b", "a%2f", "a\0", "0" * 129)
    assert not any(is_id(text) for text in bad)
