"""Sinks of brokers, with their real servers, and sinks of plugins."""

import inspect
import json
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest
from nats.aio.client import Client
from redis.asyncio import Redis

from kling_receiver.hooks.config import InvalidHook, parse_hook
from kling_receiver.net.guard import Allowlist
from kling_receiver.sinks import Delivered, Message, NotDelivered, Sink, to_cloudevent
from kling_receiver.sinks.nats import NatsSink
from kling_receiver.sinks.redis import RedisSink
from kling_receiver.sinks.registry import open_sink
from tests.support.brokers import Broker, nats, redis
from tests.support.kling import LOG
from tests.support.outgoing import install, outgoing
from tests.support.receiver import make_settings

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[3] / "docs"


def event_id(number: int) -> str:
    """The id of the event in `message`, for brokers."""
    return f"{LOG}-{number}-1795255200000"


def message(number: int = 17, **task: Any) -> Message:
    """An event to deliver."""
    at = "2026-11-21T10:00:00.000Z"
    event = {"id": number, "log_id": LOG, "type": "task.done", "at": at, "data": None, "task": {"id": "t", **task}}
    return Message(f"hook_{number}_1", event, json.dumps(event).encode(), "https://receiver.test")


def test_a_cloud_event() -> None:
    """Version 1.0, which brokers' own tools understand, with the complete event as its data."""
    sent = message()
    assert to_cloudevent(sent) == {
        "specversion": "1.0",
        "id": event_id(17),
        "source": "https://receiver.test",
        "type": "kling.task.done",
        "subject": "t",
        "time": "2026-11-21T10:00:00.000Z",
        "datacontenttype": "application/json",
        "data": sent.event,
    }


@pytest.fixture
def jetstream(tmp_path: Path) -> Iterator[Broker]:
    """A NATS server."""
    with nats(tmp_path / "nats") as broker:
        yield broker


@asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[Client]:
    """A second connection, with a stream of the subjects `kling.>`."""
    client = await nats_client.connect(f"nats://127.0.0.1:{broker.port}")
    try:
        await client.jetstream().add_stream(name="KLING", subjects=["kling.>"])
        yield client
    finally:
        await client.close()


async def stored(broker: Broker) -> list[tuple[str, dict[str, str], Any]]:
    """The messages in the stream: subjects, headers, documents."""
    async with listening(broker) as client:
        stream = client.jetstream()
        state = (await stream.stream_info("KLING")).state
        messages = [await stream.get_msg("KLING", n) for n in range(1, state.messages + 1)]
        return [(each.subject or "", each.headers or {}, json.loads(each.data or b"")) for each in messages]


async def test_an_event_into_a_jetstream(jetstream: Broker) -> None:
    """Once, however often it is sent: the stream drops repeats by the event's id."""
    sink = NatsSink(f"nats://127.0.0.1:{jetstream.port}/kling.events")
    async with listening(jetstream):
        assert await sink.send(message()) == Delivered(response="stream KLING, sequence 1")
        repeat = await sink.send(message())
        await sink.send(message(18))
    await sink.close()
    assert repeat.response == "stream KLING, sequence 1; a repeat, which the stream dropped"
    messages = await stored(jetstream)
    assert [(subject, headers["Nats-Msg-Id"]) for subject, headers, _ in messages] == [
        ("kling.events", event_id(17)),
        ("kling.events", event_id(18)),
    ]
    assert messages[0][1]["Content-Type"] == "application/cloudevents+json"
    assert messages[0][2] == to_cloudevent(message())


async def test_a_test_event_is_never_dropped(jetstream: Broker) -> None:
    """Each test event of each hook has an id of its own."""
    sink = NatsSink(f"nats://127.0.0.1:{jetstream.port}/kling.events")
    event = {**message(0).event, "type": "hook.test"}
    async with listening(jetstream):
        for name in ("one_0_1", "one_0_2", "other_0_1"):
            await sink.send(Message(name, event, b"", "https://receiver.test"))
    await sink.close()
    messages = await stored(jetstream)
    assert [document["id"] for _, _, document in messages] == ["one_0_1", "one_0_2", "other_0_1"]


async def test_a_subject_without_a_stream(jetstream: Broker) -> None:
    """The event would be lost: the publication fails."""
    sink = NatsSink(f"nats://127.0.0.1:{jetstream.port}/other")
    with pytest.raises(NotDelivered, match="NoStreamResponse"):
        await sink.send(message())
    await sink.close()


async def test_a_nats_server_goes_away_and_comes_back(jetstream: Broker) -> None:
    """Publications fail meanwhile, and succeed afterwards over a new connection; repeats are still dropped."""
    sink = NatsSink(f"nats://127.0.0.1:{jetstream.port}/kling.events", ack_seconds=0.5)
    async with listening(jetstream):
        await sink.send(message(1))
    jetstream.kill()
    for _ in range(2):
        with pytest.raises(NotDelivered):
            await sink.send(message(2))
    jetstream.start()
    await sink.send(message(2))
    await sink.send(message(1))
    await sink.close()
    assert [headers["Nats-Msg-Id"] for _, headers, _ in await stored(jetstream)] == [event_id(1), event_id(2)]


async def test_a_nats_server_with_a_password(tmp_path: Path) -> None:
    """The address contains it; the error of a wrong one does not repeat it."""
    with nats(tmp_path / "nats", "--user", "kling", "--pass", "right-password") as broker:
        good, bad = (
            NatsSink(f"nats://kling:{password}@127.0.0.1:{broker.port}/kling.x")
            for password in ("right-password", "wrong-password")
        )
        with pytest.raises(NotDelivered) as refused:
            await bad.send(message())
        with pytest.raises(NotDelivered, match="NoStreamResponse"):
            await good.send(message())
        await good.close()
        await bad.close()
    assert "password" not in str(refused.value)


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[Broker]:
    """A Redis server."""
    with redis(tmp_path / "redis") as broker:
        yield broker


async def entries(broker: Broker, stream: str, db: int = 0) -> list[dict[str, str]]:
    """The entries of a stream."""
    async with Redis(port=broker.port, db=db, decode_responses=True) as client:
        rows: Any = await client.xrange(stream)
        return [fields for _, fields in rows]


async def test_an_event_into_a_redis_stream(streams: Broker) -> None:
    """One entry for each event, in the database that the address names."""
    first = RedisSink(f"redis://127.0.0.1:{streams.port}/kling%20events")
    other = RedisSink(f"redis://127.0.0.1:{streams.port}/kling%20events?db=1")
    delivered = await first.send(message())
    await other.send(message(18))
    await first.close()
    await other.close()
    [entry] = await entries(streams, "kling events")
    assert delivered.response.startswith("entry ")
    assert (entry["id"], entry["type"]) == (event_id(17), "kling.task.done")
    assert json.loads(entry["event"]) == to_cloudevent(message())
    assert [each["id"] for each in await entries(streams, "kling events", db=1)] == [event_id(18)]


async def test_a_redis_server_goes_away_and_comes_back(streams: Broker) -> None:
    """Deliveries fail meanwhile, and succeed afterwards."""
    sink = RedisSink(f"redis://127.0.0.1:{streams.port}/events")
    await sink.send(message(1))
    streams.kill()
    for _ in range(2):
        with pytest.raises(NotDelivered):
            await sink.send(message(2))
    streams.start()
    await sink.send(message(2))
    await sink.close()
    assert [each["id"] for each in await entries(streams, "events")] == [event_id(1), event_id(2)]


async def test_a_redis_server_that_refuses(tmp_path: Path) -> None:
    """The error of a wrong password does not repeat it; a key that is not a stream is not overwritten."""
    with redis(tmp_path / "redis", "--requirepass", "right-password") as broker:
        address = f"redis://:{{}}@127.0.0.1:{broker.port}/events"
        bad, good = (RedisSink(address.format(password)) for password in ("wrong-password", "right-password"))
        with pytest.raises(NotDelivered) as refused:
            await bad.send(message())
        await good.send(message())
        async with Redis(port=broker.port, password="right-password") as client:
            await client.delete("events")
            await client.set("events", "no stream")
        with pytest.raises(NotDelivered, match="WRONGTYPE"):
            await good.send(message())
        await good.close()
        await bad.close()
    assert "wrong-password" not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "nats://",
        "nats://host:4222",
        "nats://host:4222/",
        "nats://host/a b",
        "nats://host/a.*",
        "nats://host/>",
        "nats:///subject",
        "nats://host:port/x",
        "nats://host:99999/x",
        "redis://host",
        "redis://host/",
        "redis:///stream",
        "redis://host/stream?db=one",
        "redis://host:port/x",
        "redis://host:99999/x",
    ],
)
def test_an_invalid_address_of_a_broker(address: str) -> None:
    """It is refused when the hook is added, with the correct form."""
    with pytest.raises(InvalidHook) as refused:
        parse_hook({"address": address}, Allowlist())
    assert f"{address.partition(':')[0]}://host:port/" in str(refused.value)


def test_an_unknown_scheme() -> None:
    """The error lists the known ones."""
    with pytest.raises(ValueError, match=r"no sink delivers to kafka: .* https, http, command, nats, redis"):
        open_sink("kafka://host/topic")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("no_such_module:Sink", r"a package is missing .* Install no_such_module\."),
        ("kling_receiver.sinks.no_such:Sink", r"Run: pip install '\.\[absent\]'"),
        ("kling_receiver.sinks.nats:NoSuchSink", "NoSuchSink"),
    ],
)
def test_a_sink_whose_package_is_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, message: str
) -> None:
    """The error says what to install."""
    monkeypatch.syspath_prepend(install(tmp_path / "site", "absent", target))
    with pytest.raises(ValueError, match=message):
        open_sink("absent://x")


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("1 / 0", "odd: the sink's package cannot be loaded (ZeroDivisionError: division by zero)."),
        ("def Sink(address): raise KeyError(address)", "odd: the sink cannot be opened (KeyError: 'odd://x')."),
    ],
)
def test_a_broken_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, problem: str) -> None:
    """Whatever the plugin raises, the hook is refused with the reason."""
    site = install(tmp_path / "site", "odd", "odd_sink:Sink")
    (site / "odd_sink.py").write_text(module)
    monkeypatch.syspath_prepend(site)
    with pytest.raises(InvalidHook) as refused:
        parse_hook({"address": "odd://x"}, Allowlist())
    assert refused.value.problems == [f"address: {problem}"]
    sys.modules.pop("odd_sink", None)


async def test_the_example_of_a_sink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    """docs/sink_example: a package with one module and an entry point, used like our own sinks."""
    example = DOCS / "sink_example"
    monkeypatch.syspath_prepend(example)
    monkeypatch.syspath_prepend(install(tmp_path / "site", "lines", entry_point(example)))
    file, settings = tmp_path / "events.jsonl", make_settings(tmp_path, database_url=database_url)
    async with outgoing(settings) as stage:
        await stage.add(f"lines:{file}", name="lines", concurrency=1)
        ids = await stage.add_events("one", "two", "three")
        await stage.until(lambda: len(stage.attempts()) == 3)
        file.unlink()
        file.mkdir()
        ids += await stage.add_events("four")
        await stage.until(lambda: stage.jobs("delivery"))
        file.rmdir()
        await stage.advance(5)
        await stage.until(lambda: len(stage.attempts()) == 5)
        attempts = stage.attempts()
    assert [json.loads(line)["id"] for line in file.read_text().splitlines()] == ids[3:]
    assert [row["delivered"] for row in attempts] == [True, True, True, False, True]
    sys.modules.pop("lines_sink")


def test_the_guide_to_sinks_matches_the_code() -> None:
    """Its sketch has the methods of the protocol, and it links each file of the example."""
    page = (DOCS / "delivering.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    sketch: dict[str, Any] = {}
    exec(code, sketch)
    for name in ("send", "close"):
        assert inspect.signature(getattr(sketch["Sink"], name)) == inspect.signature(getattr(Sink, name))
    for file in (DOCS / "sink_example").glob("*.*"):
        assert f"(sink_example/{file.name})" in page


def entry_point(example: Path) -> str:
    """The entry point that its `pyproject.toml` declares."""
    project = tomllib.loads((example / "pyproject.toml").read_text())["project"]
    return str(project["entry-points"]["kling_callback.sinks"]["lines"])
