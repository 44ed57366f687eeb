"""Make the hooks in the database equal to those of the settings and the hooks file."""

from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.store.transaction import Transaction

SOURCE_SETTINGS = {"file": "KLING_HOOKS_FILE", "settings": "KLING_HOOK_URL"}


def detach(tx: Transaction) -> None:
    """Without a file nothing is said of hooks: those that came from one stay, as if commands had added them."""
    for row in hook_records.hooks(tx.connection):
        if row["source"] == "file":
            name = row["name"]
            hook_records.update(tx, name, {"source": "added"})
            tx.log_after_commit(
                f"hook {name} came from KLING_HOOKS_FILE, which is not set now; it stays until it is removed"
            )


def sync(tx: Transaction, source: str, wanted: list[HookConfig], *, also: str = "") -> None:
    """Let the hooks of this source (and those that came by the source `also`) be the ones that are wanted."""
    there = {row["name"]: row for row in hook_records.hooks(tx.connection)}
    for new in wanted:
        if known := there.get(new.name):
            secrets = hook_records.rotated(
                known["secrets"], new.secret, now=tx.now, overlap=hook_records.SECRET_OVERLAP_SECONDS
            )
            hook_records.update(tx, new.name, {**new.columns(), "source": source, "secrets": secrets})
        else:
            hook_records.add(tx, new, source=source)
    for name in there.keys() - {new.name for new in wanted}:
        if there[name]["source"] in (source, also):
            hook_records.remove(tx, name)
            tx.log_after_commit(f"hook {name} is removed: {SOURCE_SETTINGS[source]} names it no more")
