"""What is owed to a task: a question to Kling, the download of a file, a look at its deadline."""

from urllib.parse import urlsplit

from kling_receiver.store.transaction import Transaction


def ask(tx: Transaction, task_id: str, due_at: int | None = None) -> None:
    """Owe Kling a question about a task."""
    tx.enqueue("ask", task_id, key=f"ask/{task_id}", lane="kling", due_at=due_at)


def overdue(tx: Transaction, task_id: str, family: str) -> None:
    """Owe a look at the task at its deadline, should it not have ended by then."""
    due = tx.now + tx.policy.overdue_ms(family)
    tx.enqueue("overdue", task_id, key=f"overdue/{task_id}", lane="overdue", due_at=due)


def download(tx: Transaction, task_id: str, index: int, url: str) -> None:
    """Owe the download of one file; files of one host wait for each other, not for other hosts."""
    tx.enqueue(
        "download",
        task_id,
        key=f"download/{task_id}/{index}",
        lane=f"download {host_of(url)}",
        data={"n": index},
    )


def host_of(url: str) -> str:
    """The host and port of an address, as it is written; "" for none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2][:200].lower()
    except ValueError:
        return ""
