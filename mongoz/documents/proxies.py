"""`Document.proxy_document`: the class of rows of which only some fields were loaded."""

from typing import Any

from mongoz.documents.construction import DocumentMetaclass, ModelMetaclass
from mongoz.model.partial import make_optional, partial_namespace

__all__ = ["ProxyDescriptor"]


class ProxyDescriptor:
    """Makes the class when it is first asked for: most documents never need it."""

    def __get__(self, instance: object, owner: Any) -> Any:
        meta = owner.meta
        made = vars(meta).get("_proxy")
        # Of two threads that get here together the second one takes what the first has made.
        return made or vars(meta).setdefault("_proxy", _proxy_of(meta.document))


def _proxy_of(document: Any) -> Any:
    # Past DocumentMetaclass: the class has no Meta and no signals of its own, and no registry knows it.
    proxy: Any = ModelMetaclass.__new__(
        DocumentMetaclass, document.__name__, (document,), partial_namespace(document)
    )
    make_optional(proxy, document)
    return proxy
