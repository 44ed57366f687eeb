"""The audit log: one entry for each administrative action, with who, what, when and the result. It holds no secret.

An action of the API has its entry before it begins: after a crash in between, the entry has no result.
"""

from sqlalchemy import Connection, insert

from kling_callback.protocol.signing import ApiToken
from kling_callback.protocol.values import sanitize
from kling_receiver.access import LOCAL_COMMAND
from kling_receiver.store.rows import AuditRow
from kling_receiver.store.sql import Statement, columns
from kling_receiver.store.tables import AUDIT
from kling_receiver.store.transaction import Transaction

DONE = "done"
"""The result of an action that succeeded; of any other, the code of its error."""
MAX_ENTRIES = 50_000
"""Entries that are kept, some 10 MB. Only administrators write them."""
MAX_CHARS = 200
"""Characters of a target or detail: they may come from a path."""

DELETE_OLD = Statement("DELETE FROM audit_entry WHERE id <= :id")
FINISH = Statement("UPDATE audit_entry SET target = :target, detail = :detail, result = :result WHERE id = :id")
SELECT = Statement[AuditRow](
    f"SELECT {columns(AUDIT)} FROM audit_entry WHERE id < :before ORDER BY id DESC LIMIT :limit",  # constants
    table=AUDIT,
)


def actor_of(token: ApiToken) -> str:
    """Who a bearer token or a session stands for, as the log names them."""
    if token.session:
        return f"dashboard {token.session}"
    if token.id:
        return f"token {token.name}"
    return LOCAL_COMMAND if token.name == LOCAL_COMMAND else f"unnamed {token.role} token"


def record(
    tx: Transaction, actor: str, action: str, target: str = "", *, detail: str = "", result: str | None = DONE
) -> int:
    """Add an entry, and remove the oldest above MAX_ENTRIES. Returns its id. `result`: None until it is known.

    `action`: the command's name, such as `hooks pause`. `target`: the name or id that it is about.
    """
    row = {
        "created_at": tx.now,
        "actor": actor,
        "action": action,
        "target": one_line(target),
        "detail": one_line(detail),
        "result": result,
    }
    entry_id = int(tx.connection.execute(insert(AUDIT).returning(AUDIT.c.id), row).scalar_one())
    DELETE_OLD.execute(tx.connection, id=entry_id - MAX_ENTRIES)
    return entry_id


def finish(tx: Transaction, entry_id: int, result: str, *, target: str, detail: str) -> None:
    """Set the result of an action whose entry was added when it began."""
    FINISH.execute(tx.connection, id=entry_id, result=result, target=one_line(target), detail=one_line(detail))


def entries(connection: Connection, limit: int, before: int) -> list[AuditRow]:
    """Entries with ids below `before`, newest first."""
    return SELECT.all(connection, limit=limit, before=before)


def one_line(value: str) -> str:
    """A text as one short line, without control characters."""
    shown = "".join(char if char.isprintable() else "\ufffd" for char in sanitize(value))
    return shown[:MAX_CHARS]
