"""Random releases, pauses, failures, retries and repartitions of one application.

In the end each receiver has got each change: once if no process was killed, and in order if the receiver blocks.
The transactional receiver has got each change once even if processes were killed.
"""

import random
from collections import defaultdict
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import PyMongoError

import mongoz
from dispatcher.exceptions import DispatcherError
from dispatcher.operate import dead_letters, pauses
from mongoz.core.signals import post_save
from tests.integration.deliveries import IMAGES, QUICK, Parked, make_account
from tests.support import Running, dispatching, eventually, group_of

# The number of operations during a release.
_STEPS = 7


pytestmark = pytest.mark.usefixtures("quick")


class Role:
    """A receiver, which may have another name in each release.

    Args:
        document: the document class whose saves the receiver gets.
        name: the name of the receiver in the first release.
        effects: the collection that a transactional receiver writes to; None for other receivers.
        options: the options of the receiver.
    """

    def __init__(self, document: Any, name: str, effects: Any = None, **options: Any) -> None:
        self.names = [name]
        self.refuses: set[ObjectId] = set()
        self._document = document
        self._effects = effects
        self._options = options
        self._got: dict[ObjectId, list[int]] = defaultdict(list)
        self._connected: Any = None

    def release(self, *, rename: bool) -> None:
        """Connects the receiver as the next release of the application does."""
        if self._connected is not None:
            self._document.signals.post_save.disconnect(self._connected)
        if rename:
            self.names.append(f"{self.names[0]}{len(self.names)}")

        async def receiver(sender: Any, instance: Any, delivery: Any, **kwargs: Any) -> None:
            await self._get(instance, delivery)

        self._connected = receiver
        *earlier, name = self.names
        formerly = {"formerly": earlier} if earlier else {}
        post_save(self._document, name=name, retry=QUICK, **formerly, **self._options)(receiver)

    async def _get(self, instance: Any, delivery: Any) -> None:
        if instance.id in self.refuses:
            raise ValueError("not yet")
        if self._effects is None:
            self._got[instance.id].append(instance.amount)
            return
        effects = delivery.session.client[self._effects.database.name][self._effects.name]
        await effects.insert_one({"of": instance.id, "amount": instance.amount}, session=delivery.session)

    @property
    def got(self) -> dict[ObjectId, list[int]]:
        """The received numbers of each document."""
        if self._effects is None:
            return dict(self._got)
        got: dict[ObjectId, list[int]] = defaultdict(list)
        for effect in self._effects.find(sort=[("_id", 1)]):
            got[effect["of"]].append(effect["amount"])
        return dict(got)


class Life:
    """The operations on one application and its dispatchers.

    Attributes:
        did: the operations so far, to explain a failure.
        written: the last number of each document.
        roles: the receivers.
    """

    def __init__(self, seed: int, document: Any, foreign: Any, client: Any, database: str) -> None:
        self.random = random.Random(seed)
        self.did: list[str] = []
        self.state = Parked(foreign)
        self.written: dict[ObjectId, int] = {ObjectId(): 0 for _ in range(6)}
        self._foreign = foreign
        self._group = group_of(client, database)
        self.blocks = Role(document, "blocks", on_failure="block")
        self.letters = Role(document, "letters", on_failure="dead_letter")
        self.once = Role(document, "once", foreign["effects"], on_failure="block", transactional=True)
        self.roles = (self.blocks, self.letters, self.once)

    def release(self) -> int:
        """Makes a new version of the application; returns its number of partitions."""
        renamed = [role for role in self.roles if self.random.random() < 0.4]
        for role in self.roles:
            role.release(rename=role in renamed)
        partitions = self.random.choice([1, 1, 2, 3])
        self.did.append(f"release {[role.names[-1] for role in self.roles]} on {partitions} partitions")
        return partitions

    async def run_release(self, registry: mongoz.Registry, *, kills: bool) -> None:
        """Runs a release for a while; a second dispatcher may start meanwhile.

        Args:
            registry: the registry of the dispatchers.
            kills: whether dispatchers may end as if SIGKILL had ended them.
        """
        async with AsyncExitStack() as stack:
            # On a busy machine a short lease may expire, and then deliveries are repeated.
            terms = {"lease": 1 if kills else 60, "grace": self.random.choice([0.0, 0.02, 1.0])}
            first = dispatching(registry, partitions=self.release(), **terms)
            daemons = [await stack.enter_async_context(first)]
            for number in range(_STEPS):
                if number == _STEPS // 2 and self.random.random() < 0.5:
                    self.did.append("another dispatcher")
                    daemons.append(await stack.enter_async_context(dispatching(registry, **terms)))
                await self.step()
            for daemon in daemons if kills else ():
                if self.random.random() < 0.5:
                    await self.kill(daemon)

    async def kill(self, daemon: Running) -> None:
        """Ends a dispatcher as SIGKILL does: its writes no longer reach the server, and its leases expire."""
        self.did.append("kill")
        await daemon.service._coordinator._store._client.close()
        with suppress(PyMongoError, DispatcherError):
            await daemon.stop()

    async def step(self) -> None:
        """Does one random operation."""
        role = self.random.choice(self.roles)
        match self.random.choice(["write"] * 5 + ["refuse", "mend", "pause", "pause", "resume", "retry"]):
            case "write":
                self.write()
            case "refuse":
                role.refuses.update(self.random.sample(list(self.written), 2))
                self.did.append(f"{role.names[-1]} refuses some")
            case "mend":
                role.refuses.clear()
                self.did.append(f"{role.names[-1]} is mended")
            case "pause":
                await self.pause(role)
            case "resume":
                await self.resume(role)
            case "retry":
                await self.retry()
        if self.random.random() < 0.4:  # time for deliveries
            before = [self.state.token, len(self.state.rows), self.total]
            await eventually(
                lambda: [self.state.token, len(self.state.rows), self.total] != before or not self.owed
            )

    def write(self) -> None:
        for id_ in self.random.choices(list(self.written), k=10):
            self.written[id_] += 1
            row = {"name": "one", "amount": self.written[id_]}
            self._foreign["accounts"].replace_one({"_id": id_}, row, upsert=True)
        self.did.append("write")

    async def pause(self, role: Role) -> None:
        await pauses.pause(self._group, role.names[-1], known=role.names)
        self.did.append(f"pause {role.names[-1]}")

    async def resume(self, role: Role) -> None:
        """Resumes a receiver by its name in the list of pauses."""
        for one in await pauses.pauses(self._group):
            if one.receiver in role.names:
                assert await pauses.resume(self._group, one.receiver)
        self.did.append(f"resume {role.names[-1]}")

    async def retry(self) -> None:
        await dead_letters.request_retry(self._group)
        self.did.append("retry")

    @property
    def total(self) -> int:
        return sum(len(set(got)) for role in self.roles for got in role.got.values())

    @property
    def owed(self) -> bool:
        return self.total < sum(self.written.values()) * len(self.roles)

    async def end(self) -> None:
        """Repairs all receivers, resumes them, and retries all dead letters."""
        self.did.append("end")
        for role in self.roles:
            role.refuses.clear()
            await self.resume(role)
        await eventually(lambda: self.state.empty and self.total + len(self.state.letters) >= self.all)
        while self.state.letters:
            await self.retry()
            await eventually(lambda: not self.state.letters or self.state.rows)
            await eventually(lambda: self.state.empty)
        await eventually(lambda: not self.owed)

    @property
    def all(self) -> int:
        return sum(self.written.values()) * len(self.roles)

    def judge(self, *, kills: bool) -> None:
        """Checks that each receiver got each change once, and in order if it blocks.

        After a kill, receivers that are not transactional may have got a change again.
        """
        wanted = {id_: list(range(1, last + 1)) for id_, last in self.written.items() if last}
        assert self.once.got == wanted
        one, other = self.blocks.got, self.letters.got
        if kills:
            one, other = ({id_: list(dict.fromkeys(got)) for id_, got in each.items()} for each in (one, other))
        assert one == wanted
        assert {id_: sorted(got) for id_, got in other.items()} == wanted


@pytest.mark.parametrize(("seed", "kills"), [(0, False), pytest.param(1, True, marks=pytest.mark.slow)])
async def test_each_change_is_delivered_once_under_random_operations(
    seed, kills, dispatched, foreign, client, database, monkeypatch
):
    foreign.create_collection("accounts", **IMAGES)
    foreign.create_collection("effects")
    life = Life(seed, make_account(dispatched, database), foreign, client, database)
    try:
        with monkeypatch.context() as patched:
            # Two dispatchers of one process share the registry. The first one to end must not close the registry.
            patched.setattr(mongoz.Registry, "close", nothing)
            for _ in range(4):
                await life.run_release(dispatched, kills=kills)
            life.release()
            async with dispatching(dispatched):
                await life.end()
    except AssertionError as error:
        error.add_note("\n".join(life.did))
        raise
    life.judge(kills=kills)


async def nothing(*args: Any) -> None:
    """Does nothing."""
