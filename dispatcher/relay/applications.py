"""The applications of a relay: their collections, and their deployment."""

from collections.abc import Sequence

from dispatcher.core.clients import Clients
from dispatcher.delivery.application import group_of, routes_of
from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import ApplicationError
from dispatcher.settings import Settings
from dispatcher.stream.scope import Scope
from mongoz import Registry


def routes_of_all(registries: Sequence[Registry], settings: Settings) -> list[Routes]:
    """The receivers of each application. If there are several applications, an error names the registry.

    Raises:
        ApplicationError: a registry has a setting that excludes a dispatcher.
        NothingToDeliver: no receiver of a registry may run in a dispatcher.
    """
    routes = []
    for registry in registries:
        try:
            routes.append(routes_of(registry, settings, group_of(registry, settings)))
        except ApplicationError as error:
            if len(registries) == 1:
                raise
            raise type(error)(f"{registry!r}: {error.message}", remedy=error.remedy) from error
    return routes


def scope_of_all(routes: Sequence[Routes], state_database: str) -> Scope:
    """The collections of all applications."""
    namespaces = [namespace for one in routes for namespace in one.namespaces]
    patterns = [pattern for one in routes for pattern in one.patterns]
    return Scope.of(namespaces, patterns, state_database)._replace(hashed=True)


def clients_of(registries: Sequence[Registry], settings: Settings) -> Clients:
    """The clients for the deployment of the registries.

    Raises:
        ApplicationError: they are on several deployments.
    """
    clients = [Clients(one, settings) for one in registries]
    addresses = {one.address for one in clients}
    if len(addresses) > 1:
        raise ApplicationError(
            f"The applications are on several deployments: {', '.join(sorted(addresses))}. "
            "A relay reads one deployment.",
            remedy="Start a relay for each deployment, with a --name of its own; or name the one deployment "
            "with --url.",
        )
    return clients[0]
