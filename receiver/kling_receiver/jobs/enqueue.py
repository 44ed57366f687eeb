"""What is owed to a task: a question to Kling, the download of a file, a look at its deadline."""

from urllib.parse import urlsplit

from kling_receiver.store.transaction import Transaction


def ask(tx: Transaction, task: str, due_at: int | None = None) -> None:
    """Owe Kling a question about a task."""
    tx.owe("ask", task, key=f"ask/{task}", lane="kling", due_at=due_at)


def watch(tx: Transaction, task: str, family: str) -> None:
    """Owe a look at the task at its deadline, should it not have ended by then."""
    due = tx.now + tx.rules.overdue_ms(family)
    tx.owe("overdue", task, key=f"overdue/{task}", lane="overdue", due_at=due)


def download(tx: Transaction, task: str, n: int, url: str) -> None:
    """Owe the download of one file; files of one host wait for each other, not for other hosts."""
    tx.owe("download", task, key=f"download/{task}/{n}", lane=f"download {host_of(url)}", data={"n": n})


def host_of(url: str) -> str:
    """The host and port of an address, as it is written; "" for none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2][:200].lower()
    except ValueError:
        return ""
