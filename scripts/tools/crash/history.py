"""What clients, hooks and listeners were told during a run, and whether the event log holds all of it.

The checks compare what left the receiver with what it stored: nothing of its own account of the run is believed.
"""

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kling_receiver.states import FINAL, RANK

RANKS = {f"task.{status}": rank for status, rank in RANK.items()}
ENDS = {f"task.{status}" for status in FINAL}


@dataclass(frozen=True)
class Event:
    """An event as it was told. `body_sha256`: of a callback's body, in the log only."""

    id: int
    task_id: str
    type: str
    body_sha256: str | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """An event from the JSON of a delivery or a stream."""
        return cls(document["id"], document["task"]["id"], document["type"])


@dataclass
class History:
    """What the receiver told others, in the order in which they heard it.

    `acknowledged`: task and SHA-256 of each callback that was answered 200. `granted`: task and attempt of each
    permission to create. `created`: the task of each create that Kling accepted. `delivered`: events by hook.
    `followed`: events by listener; a listener asks for everything from the first event on, and after a break for
    everything after the last event that it has.
    """

    acknowledged: list[tuple[str, str]] = field(default_factory=list)
    granted: list[tuple[str, str]] = field(default_factory=list)
    created: list[str] = field(default_factory=list)
    delivered: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    followed: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def acknowledge(self, task_id: str, body: bytes) -> None:
        """A callback was answered 200."""
        with self._lock:
            self.acknowledged.append((task_id, hashlib.sha256(body).hexdigest()))

    def grant(self, task_id: str, attempt: str) -> None:
        """A registration was answered with the permission to create."""
        with self._lock:
            self.granted.append((task_id, attempt))

    def deliver(self, hook: str, event: Event) -> None:
        """A hook received an event."""
        with self._lock:
            self.delivered[hook].append(event)

    def follow(self, listener: str, event: Event) -> None:
        """A listener received an event."""
        with self._lock:
            self.followed[listener].append(event)


def contradictions(history: History, log: Iterable[Event]) -> list[str]:
    """What others were told and the event log lacks, at any moment: after a cut as well as at the end."""
    events = sorted(log, key=lambda event: event.id)
    return [
        *_lost_callbacks(history.acknowledged, events),
        *_repeated_callbacks(events),
        *_status_backward("the event log", events),
        *_two_permissions(history),
        *_foreign_events(history, events),
    ]


def omissions(history: History, log: Iterable[Event], wanted: Mapping[str, Collection[str] | None]) -> list[str]:
    """What the event log has and others were not told, at the end of a run, when all work should be done.

    `wanted`: the types of event of each hook; None for a hook that wants every event.
    """
    events = sorted(log, key=lambda event: event.id)
    problems = []
    for hook, types in wanted.items():
        delivered = {event.id for event in history.delivered.get(hook, ())}
        missing = [event.id for event in events if (types is None or event.type in types) and event.id not in delivered]
        problems += [f"5: not delivered to {hook}: event {event_id}" for event_id in missing]
        if types is not None:
            extra = [event for event in history.delivered.get(hook, ()) if event.type not in types]
            problems += [f"5: delivered to {hook}, which does not want it: event {event.id}" for event in extra]
    for listener, followed in history.followed.items():
        missing = [event.id for event in events[len(followed) :]]
        problems += [f"5: not sent to {listener}: event {event_id}" for event_id in missing]
    return problems


def _lost_callbacks(acknowledged: Iterable[tuple[str, str]], events: Iterable[Event]) -> list[str]:
    logged = {(event.task_id, event.body_sha256) for event in events}
    lost = sorted(set(acknowledged) - logged)
    return [f"1: answered 200, but not in the event log: {task_id} {sha256}" for task_id, sha256 in lost]


def _repeated_callbacks(events: Iterable[Event]) -> list[str]:
    times = Counter((event.task_id, event.body_sha256) for event in events if event.body_sha256)
    return [f"2: in the event log {count} times: {task_id}" for (task_id, _), count in times.items() if count > 1]


def _status_backward(where: str, events: Iterable[Event]) -> list[str]:
    ranks, problems = defaultdict(list), []
    for event in events:
        if event.type in RANKS:
            ranks[event.task_id].append((RANKS[event.type], event.type))
    for task_id, order in ranks.items():
        ends = [type_ for _, type_ in order if type_ in ENDS]
        numbers = [rank for rank, _ in order]
        if numbers != sorted(set(numbers)) or len(ends) > 1:
            problems.append(f"3: status went back in {where}: {task_id} {[type_ for _, type_ in order]}")
    return problems


def _two_permissions(history: History) -> list[str]:
    """The same attempt may be told twice: its first answer may have been cut off."""
    attempts = defaultdict(set)
    for task_id, attempt in history.granted:
        attempts[task_id].add(attempt)
    problems = [f"6: {len(each)} attempts may create {task_id}" for task_id, each in attempts.items() if len(each) > 1]
    times = Counter(history.created)
    problems += [f"6: created {count} times: {task_id}" for task_id, count in times.items() if count > 1]
    return problems + [f"6: created without permission: {task_id}" for task_id in times if task_id not in attempts]


def _foreign_events(history: History, events: Sequence[Event]) -> list[str]:
    """Events that were told and are not in the log, or out of order for a listener.

    A hook may receive its events out of order (docs/delivering.md), a listener may not.
    """
    logged = {event.id: event for event in events}
    problems = []
    for hook, delivered in history.delivered.items():
        foreign = [event for event in delivered if logged.get(event.id) != event]
        problems += [f"5: {hook} received an event that is not in the log: {event}" for event in foreign]
    for listener, followed in history.followed.items():
        for number, event in enumerate(followed):
            if number >= len(events) or events[number] != event:
                problems.append(f"5: {listener} received as event number {number + 1}: {event}")
                break
        problems += _status_backward(f"what {listener} received", followed)
    return problems
