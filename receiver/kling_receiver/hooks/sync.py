"""Make the hooks in the database equal to those of the settings and the hooks file."""

from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import NewHook
from kling_receiver.store.transaction import Transaction

WHOSE = {"file": "KLING_HOOKS_FILE", "settings": "KLING_HOOK_URL"}


def release(tx: Transaction) -> None:
    """Without a file nothing is said of hooks: those that came from one stay, as if commands had added them."""
    for row in hook_records.hooks(tx.connection):
        if row["source"] == "file":
            name = row["name"]
            hook_records.change(tx, name, {"source": "added"})
            tx.say(
                f"hook {name} came from KLING_HOOKS_FILE, which is not set now; it stays until it is removed"
            )


def align(tx: Transaction, source: str, wanted: list[NewHook], *, also: str = "") -> None:
    """Let the hooks of this source (and those that came by the source `also`) be the ones that are wanted."""
    there = {row["name"]: row for row in hook_records.hooks(tx.connection)}
    for new in wanted:
        if known := there.get(new.name):
            secrets = hook_records.succeeded(
                known["secrets"], new.secret, now=tx.now, overlap=hook_records.OVERLAP
            )
            hook_records.change(tx, new.name, {**new.values(), "source": source, "secrets": secrets})
        else:
            hook_records.add(tx, new, source=source)
    for name in there.keys() - {new.name for new in wanted}:
        if there[name]["source"] in (source, also):
            hook_records.remove(tx, name)
            tx.say(f"hook {name} is removed: {WHOSE[source]} names it no more")
