"""The demo on Kafka: a relay publishes the changes, two workers deliver them, and a worker and the relay die."""

from collections.abc import Sequence
from typing import Final

from dispatcher.demo.demo import Demo, ScheduledFault
from dispatcher.embedded.broker import embedded_broker
from dispatcher.embedded.processes import Child

_PARTITIONS: Final = 8
# The lease in seconds: after it, the other worker takes over. It is short, so that this happens within the demo.
_LEASE: Final = 2


class KafkaDemo(Demo):
    """The processes of the demo on Kafka."""

    _relay_command: Sequence[str]
    _relay: Child
    _worker: Child

    def start(self, url: str) -> None:
        """Start a broker, a relay and two workers."""
        broker = self.running.enter_context(embedded_broker())
        self.screen.print_line(f"{broker.notice}, on {broker.address}, with its topics in memory")
        options = ("--kafka", broker.address, "--lease", str(_LEASE))
        silent = ("--http", "off")
        self._relay_command = [*self.shop.relay(url), *options, *silent, "--partitions", str(_PARTITIONS)]
        self._relay = self.add("relay", self._relay_command)
        self.wait_until_working()
        self.add("first worker", [*self.shop.dispatcher(url), *options])
        self._worker = self.add("second worker", [*self.shop.dispatcher(url), *options, *silent])
        self.wait_until_working()
        self.screen.print_line(
            f"a relay publishes the changes of {self.shop.package}, and two workers share the work of delivering "
            "them; now a plain PyMongo client writes to the shop"
        )

    def faults(self) -> Sequence[ScheduledFault]:
        """First a worker dies, then the relay."""
        return (ScheduledFault(0.3, self._kill_the_worker), ScheduledFault(0.6, self._kill_the_relay))

    def _kill_the_worker(self) -> None:
        self.kill(self._worker)
        self.screen.warn(
            f"the second worker is killed; the first one takes over its partitions after the lease of {_LEASE} s"
        )

    def _kill_the_relay(self) -> None:
        self.kill(self._relay)
        self.screen.warn("the relay is killed, and started again; it continues at its saved position")
        self._relay = self.add("relay", self._relay_command)
