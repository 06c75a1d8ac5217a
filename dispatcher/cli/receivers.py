"""`dispatcher receivers`."""

from dispatcher.cli.application import load_registry
from dispatcher.cli.options import App, Import, Json
from dispatcher.cli.output import out, print_json
from dispatcher.core.output.terminal import Grid


def receivers(app: App, imports: Import = [], as_json: Json = False) -> None:  # noqa: B006 - typer copies it
    """List the receivers that run in the dispatcher, and where they are defined.

    The list is the same whether the dispatcher reads from change streams or from Kafka.

    Example: `dispatcher receivers shop.models:registry`
    """
    from dispatcher.delivery.routes import Routes
    from dispatcher.group.facts import pace_of

    registry = load_registry(app, imports)
    routes = Routes(registry.all_documents, registry.dispatched or "default")
    rows = [
        {
            "collection": listener.document.meta.collection.namespace,
            "document": listener.document.__name__,
            "signal": signal,
            "receiver": receiver.name,
            "delivery": receiver.delivery,
            **pace_of(receiver.options),
            "where": receiver.defined_at,
        }
        for listener in routes.listeners
        for signal, receivers in listener.receivers.items()
        for receiver in receivers
    ]
    if as_json:
        print_json(rows)
        return
    table = Grid(
        "collection", "document", "signal", "receiver", "delivery", "concurrency", "rate", "batch", "defined at"
    )
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    out.print(table if rows else "No receiver of this application runs in the dispatcher.")
