"""Named tokens in the database and in the cache: added once, revoked at once and for good."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from kling_callback.protocol.signing import ApiToken
from kling_receiver.access import tokens
from kling_receiver.access.tokens import NotAdded, TokenCache, active, add
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.writer import Writer
from tests.support.database import NOW, Ledger, statements

pytestmark = pytest.mark.anyio

YEAR = 365 * 86_400
NOW_SECONDS = NOW // 1000


def named(name: str = "ci", token_id: str = "1", expires: int = NOW_SECONDS + YEAR) -> ApiToken:
    """A token as it is verified."""
    return ApiToken("client", expires, name, token_id)


class Stage:
    """A cache with a writer and a reader of its own; `now` is in unix seconds."""

    def __init__(self, database: Database) -> None:
        self.database, self.revoked, self.now = database, 0, float(NOW_SECONDS)
        self.reader, self.writer = Reader(database), Writer(database, clock=lambda: self.now, lazy_seconds=0.01)
        self.cache = self.restarted()

    def restarted(self) -> TokenCache:
        """The cache of the next process."""
        return TokenCache(self.reader, self.writer, on_revoke=self.on_revoke, clock=lambda: self.now)

    def on_revoke(self) -> None:
        """Count the revocations."""
        self.revoked += 1

    async def names(self) -> list[str]:
        """The active tokens."""
        return [row["name"] for row in await self.reader.read(active)]


@pytest.fixture
async def stage(database: Database) -> AsyncIterator[Stage]:
    stage = Stage(database)
    stage.writer.start()
    yield stage
    await stage.writer.close()
    await stage.reader.close()


async def test_a_token_is_no_other_one_with_its_id(stage: Stage) -> None:
    """Otherwise the list would show the role and the end of another token than the one that is used."""
    listed = named("reader")
    await stage.cache.add(listed)
    for other in (
        replace(listed, role="admin"),
        replace(listed, name="other"),
        replace(listed, expires=listed.expires + 1),
    ):
        assert not await stage.cache.is_active(other)
        with pytest.raises(NotAdded, match="reader has the same id"):
            await stage.cache.add(other)
    assert await stage.cache.is_active(listed)
    assert (await stage.cache.add(listed))["role"] == "client"


async def test_a_token_is_accepted_from_its_addition_to_its_revocation(stage: Stage) -> None:
    """Also by the next process; one that was never added is not accepted, however well it is signed."""
    token = named()
    assert not await stage.cache.is_active(token)
    row = await stage.cache.add(token)
    assert (row["name"], row["role"], row["expires_at"]) == ("ci", "client", token.expires * 1000)
    assert await stage.cache.is_active(token)
    assert await stage.restarted().is_active(token)
    assert await stage.cache.revoke("ci")
    assert stage.revoked == 1
    assert stage.cache.was_revoked(token)
    assert not await stage.cache.is_active(token)
    assert not await stage.restarted().is_active(token)
    assert not await stage.cache.revoke("ci")


async def test_a_name_is_of_one_token_at_a_time(stage: Stage) -> None:
    """The same token again is no second one; a revoked one never comes back, and its name is free."""
    await stage.cache.add(named())
    assert (await stage.cache.add(named()))["id"] == "1"
    with pytest.raises(NotAdded, match="There is a token ci already"):
        await stage.cache.add(named(token_id="2"))
    await stage.cache.revoke("ci")
    await stage.cache.add(named(token_id="2"))
    for again in (named(), named("other")):
        with pytest.raises(NotAdded):
            await stage.cache.add(again)
    await stage.cache.revoke("ci")
    with pytest.raises(NotAdded, match="was revoked"):
        await stage.cache.add(named())
    assert not await stage.cache.is_active(named())


async def test_an_expired_token_makes_room(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its row is deleted, also if it was revoked; until then there is a limit."""
    monkeypatch.setattr(tokens, "MAX_TOKENS", 2)
    await stage.cache.add(named("a", "1", NOW_SECONDS + 100))
    await stage.cache.add(named("b", "2", NOW_SECONDS + 100))
    await stage.cache.revoke("b")
    with pytest.raises(NotAdded, match="There are 2 tokens"):
        await stage.cache.add(named("c", "3"))
    stage.now += 161
    await stage.cache.add(named("a", "3"))
    assert await stage.names() == ["a"]


async def test_many_changes_at_once(stage: Stage) -> None:
    """Of one name: in the end the cache agrees with the database, and every token that was revoked is refused."""

    async def change(number: int) -> str | None:
        try:
            await stage.cache.add(named(token_id=str(number)))
        except NotAdded:
            return None
        await asyncio.sleep(0)
        await stage.cache.revoke("ci")
        return str(number)

    added = await asyncio.gather(*(change(number) for number in range(20)))
    assert any(added)
    assert await stage.names() == []
    assert not any([await stage.cache.is_active(named(token_id=str(number))) for number in range(20)])


async def test_the_database_is_read_once(stage: Stage) -> None:
    """However many requests there are; the use of a token is recorded at most once an hour."""
    await stage.cache.add(named())
    cache = stage.restarted()
    with statements(stage.database) as seen:
        for _ in range(100):
            assert await cache.is_active(named())
        await asyncio.gather(*cache._recording)
        reads = [each for each in seen if each.startswith("SELECT") and "api_token" in each]
        writes = [each for each in seen if each.startswith("UPDATE api_token")]
    assert (len(reads), len(writes)) == (1, 1)
    [row] = await stage.reader.read(active)
    assert row["last_used_at"] == NOW
    stage.now += 3601
    assert await cache.is_active(named())
    await asyncio.gather(*cache._recording)
    [row] = await stage.reader.read(active)
    assert row["last_used_at"] == NOW + 3_601_000


async def test_a_revocation_that_cannot_be_stored_counts_until_the_restart(stage: Stage) -> None:
    """The caller gets an error and repeats it; meanwhile the token is refused rather than accepted."""
    await stage.cache.add(named())
    await stage.writer.close()
    with pytest.raises(Unavailable):
        await stage.cache.revoke("ci")
    assert not await stage.cache.is_active(named())
    assert stage.revoked == 1
    stage.writer.start()
    assert await stage.names() == ["ci"]
    assert await stage.cache.revoke("ci")
    assert await stage.names() == []


async def test_an_addition_whose_commit_got_no_answer_is_looked_up(stage: Stage) -> None:
    """It may have succeeded: the next use reads the database again."""
    assert not await stage.cache.is_active(named())
    await stage.writer.close()
    with pytest.raises(Unavailable):
        await stage.cache.add(named())
    Ledger(stage.database).change(lambda tx: add(tx, named()))
    assert await stage.cache.is_active(named())
    stage.writer.start()


def test_two_tokens_of_one_name_are_impossible(database: Database) -> None:
    """The table refuses them, unless one was revoked."""
    columns = "id, name, role, created_at, expires_at, revoked_at"
    insert = f"INSERT INTO api_token ({columns}) VALUES ('{{}}', 'ci', 'read', 1, 2, {{}})"
    with database.write() as connection:
        connection.execute(text(insert.format(1, 5)))
        connection.execute(text(insert.format(2, "NULL")))
    with pytest.raises(Exception, match=r"(?i)unique"), database.write() as connection:
        connection.execute(text(insert.format(3, "NULL")))
    with pytest.raises(Exception, match=r"(?i)check|constraint"), database.write() as connection:
        connection.execute(text(insert.format(4, 5).replace("read", "root")))
