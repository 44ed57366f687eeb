"""Make the hooks in the database equal to those of the settings and of the hooks file."""

from kling_receiver.access import audit
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig
from kling_receiver.store.transaction import Transaction

SOURCE_SETTINGS = {"file": "KLING_HOOKS_FILE", "settings": "KLING_HOOK_URL"}


def detach(tx: Transaction) -> None:
    """Keep the hooks of a file that is no longer set, as if commands had added them: no event is dropped."""
    for row in hook_records.hooks(tx.connection):
        if row["source"] == "file":
            name = row["name"]
            hook_records.update(tx, name, {"source": "added"})
            tx.log_after_commit(
                f"hook {name} came from KLING_HOOKS_FILE, which is not set any more; "
                f"the hook stays until a command removes it"
            )


def sync(tx: Transaction, source: str, configs: list[HookConfig], *, also: str = "") -> None:
    """Make the hooks of `source`, and of the source `also`, equal to `configs`: add, update, remove.

    An updated hook keeps its cursor and its health. A changed secret signs beside the old one for a while.
    """
    rows = {row["name"]: row for row in hook_records.hooks(tx.connection)}
    for config in configs:
        if row := rows.get(config.name):
            secrets = hook_records.rotated(
                row["secrets"], config.secret, now=tx.now, overlap=hook_records.SECRET_OVERLAP_SECONDS
            )
            changes = {**config.columns(), "source": source, "secrets": secrets}
            if any(changes[name] != value for name, value in row.items() if name in changes):
                hook_records.update(tx, config.name, changes)
                audit.record(tx, SOURCE_SETTINGS[source], "hooks change", config.name)
        else:
            hook_records.add(tx, config, source=source)
            audit.record(tx, SOURCE_SETTINGS[source], "hooks add", config.name)
    for name in rows.keys() - {config.name for config in configs}:
        if rows[name]["source"] in (source, also):
            hook_records.remove(tx, name)
            audit.record(tx, SOURCE_SETTINGS[source], "hooks remove", name)
            tx.log_after_commit(f"hook {name} was removed: it is no longer in {SOURCE_SETTINGS[source]}")
