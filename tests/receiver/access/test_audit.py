"""The audit log: entries of one line each, the newest of them, with a result or without."""

import pytest

from kling_callback.protocol.signing import ApiToken
from kling_receiver.access import LOCAL_COMMAND, audit
from kling_receiver.store.database import Database
from tests.support.database import NOW, Ledger


def test_an_entry_has_its_result_once_the_action_has_ended(database: Database) -> None:
    """Until then it is null: an action that was interrupted is in the log too."""
    ledger = Ledger(database)
    begun = ledger.change(lambda tx: audit.record(tx, "token ci", "hooks add", result=None))
    ledger.change(lambda tx: audit.record(tx, LOCAL_COMMAND, "migrate"))
    with database.read() as connection:
        assert [row["result"] for row in audit.entries(connection, 9, 1 << 62)] == ["done", None]
    ledger.change(lambda tx: audit.finish(tx, begun, "name_taken", target="shop", detail="to h.example"))
    with database.read() as connection:
        [first] = audit.entries(connection, 9, begun + 1)
    assert first == {
        "id": begun,
        "created_at": NOW,
        "actor": "token ci",
        "action": "hooks add",
        "target": "shop",
        "detail": "to h.example",
        "result": "name_taken",
    }


def test_the_log_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest entries are removed; ids are not used again."""
    monkeypatch.setattr(audit, "MAX_ENTRIES", 3)
    ledger = Ledger(database)
    ids = [ledger.change(lambda tx: audit.record(tx, "a", "b")) for _ in range(9)]
    with database.read() as connection:
        assert [row["id"] for row in audit.entries(connection, 99, 1 << 62)] == ids[:-4:-1]


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "a\0b", "a\u2028b", "\ud800", "x" * 999, "a\u202eb"])
def test_a_text_is_one_short_line(database: Database, text: str) -> None:
    """A path may hold anything; no terminal and no line of a log is changed by it."""
    ledger = Ledger(database)
    entry_id = ledger.change(lambda tx: audit.record(tx, "a", "b", text, detail=text))
    with database.read() as connection:
        [row] = audit.entries(connection, 1, entry_id + 1)
    assert row["target"] == row["detail"]
    assert row["target"].isprintable()
    assert len(row["target"]) <= audit.MAX_CHARS


@pytest.mark.parametrize(
    ("token", "actor"),
    [
        (ApiToken("admin", 1), "unnamed admin token"),
        (ApiToken("admin", 1, LOCAL_COMMAND), "local command"),
        (ApiToken("admin", 1, "ci", "1"), "token ci"),
        (ApiToken("admin", 1, LOCAL_COMMAND, "1"), "token local command"),
        (ApiToken("admin", 1, "ci"), "unnamed admin token"),
    ],
)
def test_who_acts(token: ApiToken, actor: str) -> None:
    """A named token by its name; nothing that a name can be stands for a command."""
    assert audit.actor_of(token) == actor
