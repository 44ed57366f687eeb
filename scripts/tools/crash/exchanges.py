"""What a traced receiver told others, and at which line of the trace: its answers, and the events that it sent."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kling_callback.protocol.signing import CallbackSigner
from kling_receiver.hooks.config import DEFAULT_HOOK
from kling_sandbox.receiver import SIGNING_SECRET
from tools.crash.history import Event, History
from tools.crash.strace import Call

READS = {"read", "recvfrom", "recvmsg"}
WRITES = {"write", "writev", "sendto", "sendmsg"}
SOCKETS = ",".join(sorted(READS | WRITES))
YEAR = 365 * 86400


@dataclass
class Message:
    """What one side of a connection sent until the other side answered. `line`: where its first bytes were sent."""

    sent: bool
    line: int
    content: bytes

    @property
    def body(self) -> bytes:
        """What follows the head."""
        return self.content.partition(b"\r\n\r\n")[2]


def messages(calls: Iterable[Call]) -> Iterator[list[Message]]:
    """The messages of each connection, in order."""
    connections: dict[str, list[Message]] = defaultdict(list)
    for call in calls:
        if call.file.startswith("socket:") and call.name in READS | WRITES and call.result > 0:
            sent, data = call.name in WRITES, b"".join(call.strings)
            connection = connections[call.file]
            if connection and connection[-1].sent == sent:
                connection[-1].content += data
            else:
                connection.append(Message(sent, call.started, data))
    yield from connections.values()


@dataclass
class Told:
    """What the receiver told others. `lines`: where each of `callbacks`, `permissions` and `events` was sent."""

    callbacks: list[tuple[int, str, bytes]]
    permissions: list[tuple[int, str, str]]
    events: list[tuple[int, Event]]

    @property
    def lines(self) -> set[int]:
        """The lines at which others were told."""
        return (
            {line for line, *_ in self.callbacks}
            | {line for line, *_ in self.permissions}
            | {line for line, _ in self.events}
        )

    def before(self, cut: int) -> History:
        """The part of it that was on its way at a cut."""
        history = History()
        for line, task_id, body in self.callbacks:
            if line < cut:
                history.acknowledge(task_id, body)
        for line, task_id, attempt in self.permissions:
            if line < cut:
                history.grant(task_id, attempt)
        for line, event in self.events:
            if line < cut:
                history.deliver(DEFAULT_HOOK, event)
        return history


def told(calls: Iterable[Call]) -> Told:
    """All that the receiver told others in a trace."""
    found = Told([], [], [])
    signer = CallbackSigner([SIGNING_SECRET])
    for connection in messages(calls):
        for message, answer in zip(connection, [*connection[1:], None], strict=True):
            start = message.content.split(b" ", 2)
            if message.sent and start[0] == b"POST" and start[1].startswith(b"/events"):
                found.events.append((message.line, Event.parse(json.loads(message.body))))
            elif answer is None or message.sent or not answer.content.startswith(b"HTTP/1.1 2"):
                continue
            elif start[0] == b"POST" and start[1].startswith(b"/callbacks/"):
                task_id = signer.verify(start[1].rpartition(b"/")[2].decode(), YEAR).task_id
                found.callbacks.append((answer.line, task_id, message.body))
            elif start[0] == b"PUT" and json.loads(answer.body).get("create"):
                attempt = json.loads(message.body)["attempt"]
                found.permissions.append((answer.line, start[1].rpartition(b"/")[2].decode(), attempt))
    return found
