"""The group and the routes of an application, or the reason why it has none."""

from dispatcher.delivery.routes import Routes
from dispatcher.exceptions import ApplicationError, NothingToDeliver
from dispatcher.settings import Settings
from mongoz import Registry


def group_of(registry: Registry, settings: Settings) -> str:
    """The group of dispatchers that serves a registry.

    Raises:
        ApplicationError: the registry has none, and the operator did not accept that.
    """
    if registry.dispatched is not None:
        return registry.dispatched
    if not settings.deliver_everything:
        raise ApplicationError(
            "The registry is not dispatched, so the application's own writes can't be told apart: "
            "their receivers would run twice.",
            remedy="Make it with Registry(..., dispatched=True), or accept it with --deliver-everything.",
        )
    return "default"


def routes_of(registry: Registry, settings: Settings, group: str) -> Routes:
    """The receivers of a registry that a dispatcher may run.

    Raises:
        NothingToDeliver: there are none.
    """
    routes = Routes(registry.all_documents, group, settings.state_database)
    if routes.listeners:
        return routes
    if not registry.all_documents:
        raise NothingToDeliver(
            "The registry has no documents.",
            remedy="Is the module with the documents imported, and does their Meta name this registry?",
        )
    raise NothingToDeliver(
        f"None of the {len(registry.all_documents)} documents of the registry has a post_save, "
        "post_update or post_delete receiver that may run in the dispatcher.",
        remedy="Is the module with the receivers imported? Name it with --import MODULE.",
    )
