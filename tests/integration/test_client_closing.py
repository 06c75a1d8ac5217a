"""Closes clients whose `close` fails or hangs."""

import asyncio

from dispatcher.core.clients import close


async def test_a_client_that_can_not_be_closed_does_not_keep_other_clients_open(capsys):
    closed = []

    class Broken:
        async def close(self) -> None:
            closed.append("broken")
            raise RuntimeError("Lock is not acquired")

    class Stuck:
        async def close(self) -> None:
            closed.append("stuck")
            await asyncio.Event().wait()

    await asyncio.wait_for(close(Broken(), Stuck(), Broken()), 60)
    assert closed == ["broken", "stuck", "broken"]
    said = capsys.readouterr().out
    assert said.count("client.not_closed") == 3
    assert said.count("Lock is not acquired") == 2
