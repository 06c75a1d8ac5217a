"""Finds the group and the routes of an application. The errors say why it has no group, or no routes."""

from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import ApplicationError, NothingToDeliver
from dispatcher.settings import Settings
from mongoz import Registry


def group_of(registry: Registry, settings: Settings) -> str:
    """The group of dispatchers that serves a registry.

    Raises:
        ApplicationError: the registry has no group, and the operator did not set `deliver_everything`.
    """
    if registry.dispatched is not None:
        return registry.dispatched
    if not settings.deliver_everything:
        raise ApplicationError(
            "The registry is not dispatched, so the dispatcher can't recognize the application's own writes: "
            "their receivers would run twice.",
            remedy="Create it with Registry(..., dispatched=True), or accept this with --deliver-everything.",
        )
    return "default"


def routes_of(registry: Registry, settings: Settings, group: str) -> Routes:
    """Find the receivers that a dispatcher may run for the documents of a registry.

    Raises:
        NothingToDeliver: there is no such receiver.
        ApplicationError: receivers with the same name have different limits, or different options for batches.
    """
    routes = Routes(registry.all_documents, group, settings.state_database)
    routes.check_batches()
    if routes.listeners:
        _require_one_limit(routes)
        return routes
    if not registry.all_documents:
        raise NothingToDeliver(
            "The registry has no documents.",
            remedy="Import the module with the documents. Their Meta must have this registry.",
        )
    raise NothingToDeliver(
        f"None of the {len(registry.all_documents)} documents of the registry has a post_save, "
        "post_update or post_delete receiver that may run in the dispatcher.",
        remedy="If the module with the receivers is not imported, name it with --import MODULE.",
    )


def _require_one_limit(routes: Routes) -> None:
    """Require that receivers with the same name have equal limits, because they share one limit."""
    limits = {one.name: (one.options.concurrency, one.options.rate) for one in routes.receivers}
    for one in routes.receivers:
        if (one.options.concurrency, one.options.rate) != limits[one.name]:
            raise ApplicationError(
                f"The receivers with the name {one.name!r} have different limits (concurrency=, rate=).",
                remedy="Receivers with the same name share one limit. Give them equal limits, or different names.",
            )
