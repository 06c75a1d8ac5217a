"""Closing clients, in whatever state the driver is."""

import asyncio
import time

from pymongo import AsyncMongoClient

from dispatcher.server import close


async def test_a_client_whose_lock_nobody_gives_back_is_left_behind(capsys):
    """The lock of the driver, once a task that looks for a server is cancelled several times at once."""
    client = AsyncMongoClient("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=20000")
    asking = [asyncio.create_task(client.admin.command("ping")) for _ in range(5)]
    await asyncio.sleep(0.5)
    for _ in range(4):
        for task in asking:
            task.cancel()
        await asyncio.sleep(0)
    await asyncio.gather(*asking, return_exceptions=True)
    began = time.monotonic()
    await asyncio.wait_for(close(client), 60)
    assert "client.not_closed" in capsys.readouterr().out
    assert time.monotonic() - began < 30


async def test_a_client_that_fails_to_close_keeps_no_other_one_open(capsys):
    class Client:
        closed = 0

        async def close(self) -> None:
            Client.closed += 1
            raise RuntimeError("Lock is not acquired")

    await close(Client(), Client())
    assert Client.closed == 2
    assert capsys.readouterr().out.count("Lock is not acquired") == 2
