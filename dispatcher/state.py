"""The dispatcher's own collections, in the database `mongoz_dispatcher` (a setting).

positions: one document per group and partition.

    _id           "<group>:<partition>"
    group         the group of dispatchers
    partition     0 (one partition so far)
    owner         the process that may write here: random, new at every start
    term          grows with every change of ownership; `delivery.term`
    host, pid     of the owner, for people
    claimed_at    the server's time at which the owner took over
    token         resume token (its `_data`): everything up to it is finished
    cluster_time  the token's time, from which another pipeline can start
    fingerprint   of the scope and pipeline that the token belongs to
    ahead         tokens behind `token` that are finished already; written by a graceful stop
    saved_at      the server's time of the last save; advances on an idle stream too
"""

from typing import Any, Final

from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

__all__ = ["POSITIONS", "positions"]

POSITIONS: Final = "positions"


def positions(client: AsyncMongoClient[Any], database: str) -> AsyncCollection[dict[str, Any]]:
    """The collection of positions: what is written there survives a failover, and what is read did."""
    return client[database].get_collection(
        POSITIONS, write_concern=WriteConcern("majority"), read_concern=ReadConcern("majority")
    )
