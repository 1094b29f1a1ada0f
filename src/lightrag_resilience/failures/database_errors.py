"""Errors of database drivers and of gRPC, by class name.

Their numeric codes are no HTTP statuses: not even a 503 of Milvus.
"""

from __future__ import annotations

import time
from typing import Any, Final

from .http_errors import DATABASE_PASSING, by_status, of_status, status_of
from .kinds import (
    FATAL,
    LOCAL,
    THROTTLED,
    TRANSIENT,
    UNKNOWN,
    Failure,
    Table,
    package_of,
    with_wait,
)
from .retry_after import advice, asked_wait, seconds_of
from .tracebacks import by_inner
from .transport_errors import by_reading

__all__ = ["DATABASES"]

_Answer = Failure | tuple[Exception, ...]


# ---------------------------------------------------------------------- Redis


def _by_redis_message(exc: BaseException) -> Failure:
    """Only redis-py's wording distinguishes a failed connection from a lost answer."""
    text = str(exc)
    if text.startswith(("No connection available", "Too many connections")):  # of its pool
        return LOCAL
    unsent = "connecting to" in text or "max number of clients" in text
    return TRANSIENT if unsent else UNKNOWN


_REDIS: Table = {
    **dict.fromkeys(("ConnectionError", "TimeoutError"), _by_redis_message),
    **dict.fromkeys(("BusyLoadingError", "ClusterError"), TRANSIENT),
    "MaxConnectionsError": LOCAL,
    **dict.fromkeys(("MasterNotFoundError", "SlaveNotFoundError"), TRANSIENT),  # of Sentinel
    **dict.fromkeys(("TryAgainError", "AskError", "ReadOnlyError", "OutOfMemoryError"), TRANSIENT),
    **dict.fromkeys(("AuthenticationError", "AuthorizationError"), FATAL),  # ConnectionErrors too
    **dict.fromkeys(("ResponseError", "DataError", "WatchError"), FATAL),
    "CrossSlotTransactionError": FATAL,
    "InvalidResponse": UNKNOWN,
}

# ---------------------------------------------------------------------- PostgreSQL

_SQLSTATES: dict[str, Failure] = {  # exact, or the class in the first two characters
    "08": UNKNOWN,  # the connection was lost
    **dict.fromkeys(("08001", "08004"), TRANSIENT),  # it was never made
    "25006": TRANSIENT,  # read-only: a standby, after a failover
    "40": TRANSIENT,  # rolled back: serialization, deadlock
    "40002": FATAL,
    "40003": UNKNOWN,
    "53": TRANSIENT,  # too many connections, out of memory, disk full
    "55P03": TRANSIENT,  # a lock was not available
    "57": TRANSIENT,  # cancelled, shutting down, starting up
    "57P04": FATAL,
    "58": TRANSIENT,  # I/O
    "XX": UNKNOWN,
}


def _by_sqlstate(exc: Any) -> Failure:
    return _of_sqlstate(str(exc.sqlstate))


def _of_sqlstate(state: str) -> Failure:
    return _SQLSTATES.get(state) or _SQLSTATES.get(state[:2]) or FATAL


def _by_last_words(exc: Exception) -> _Answer:
    """By the server's last error before it closed the connection, if any."""
    last = exc.__cause__
    is_of_server = isinstance(last, Exception) and package_of(type(last)) == "asyncpg"
    return (last,) if is_of_server else UNKNOWN  # type: ignore[return-value]  # mypy forgets why


def _by_interface_message(exc: Exception) -> Failure:
    """Mostly misuse; but on a closed connection nothing was sent."""
    return TRANSIENT if str(exc).endswith("connection is closed") else FATAL


_ASYNCPG: Table = {
    "PostgresError": _by_sqlstate,
    "ConnectionDoesNotExistError": _by_last_words,
    "InvalidCachedStatementError": TRANSIENT,
    "InterfaceError": _by_interface_message,
    "InternalClientError": UNKNOWN,
    "TargetServerAttributeNotMatched": TRANSIENT,  # no server is primary now
}

_UNSENT_BY_LIBPQ = ("connection failed", "could not connect", "could not translate", "failed to")


def _by_libpq(exc: Any) -> Failure:
    """By psycopg's SQLSTATE; an error without one is not of the server."""
    state = getattr(exc, "sqlstate", None) or getattr(exc, "pgcode", None)
    if state:
        return _of_sqlstate(str(state))
    text = str(exc)
    if any(base.__name__ == "OperationalError" for base in type(exc).__mro__):
        return TRANSIENT if text.startswith(_UNSENT_BY_LIBPQ) else UNKNOWN
    return TRANSIENT if text.endswith("connection is closed") else FATAL


_PSYCOPG: Table = {"Error": _by_libpq, "ConnectionTimeout": TRANSIENT, "PoolError": LOCAL}
_PSYCOPG_POOL: Table = {
    "PoolClosed": FATAL,
    **dict.fromkeys(("PoolTimeout", "TooManyRequests"), LOCAL),
}
_SQLALCHEMY: Table = {
    "SQLAlchemyError": FATAL,
    "DBAPIError": by_inner("orig", UNKNOWN),
    "TimeoutError": LOCAL,  # of its pool
    "DisconnectionError": TRANSIENT,
}

# ---------------------------------------------------------------------- Neo4j


def _by_is_retryable(exc: Any) -> Failure:
    return TRANSIENT if exc.is_retryable() else FATAL


_NEO4J: Table = {
    **dict.fromkeys(("Neo4jError", "DriverError"), _by_is_retryable),
    "DatabaseError": UNKNOWN,  # the server failed
    **dict.fromkeys(("IncompleteCommit", "BrokenRecordError"), UNKNOWN),
    "ConnectionPoolError": TRANSIENT,  # no connection, so nothing was sent
    "ConnectionAcquisitionTimeoutError": LOCAL,
}

# ---------------------------------------------------------------------- gRPC

_WRONG_REQUEST = "invalid_argument not_found already_exists permission_denied unauthenticated"
_WRONG_STATE = "failed_precondition out_of_range unimplemented"
_GRPC_CODES: dict[str, Failure] = {
    **dict.fromkeys(("UNAVAILABLE", "ABORTED"), TRANSIENT),
    "RESOURCE_EXHAUSTED": THROTTLED,
    **dict.fromkeys(("DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL"), UNKNOWN),
    "DATA_LOSS": UNKNOWN,
    **dict.fromkeys(f"{_WRONG_REQUEST} {_WRONG_STATE}".upper().split(), FATAL),
}
_TOO_LARGE = ("larger than max", "serializing request")  # of messages


def _by_grpc_code(exc: Any) -> Failure:
    if not callable(getattr(exc, "code", None)):  # a bare RpcError
        return UNKNOWN
    verdict = _GRPC_CODES.get(exc.code().name, UNKNOWN)
    if any(words in str(exc.details()) for words in _TOO_LARGE):
        return FATAL
    if verdict is not THROTTLED:
        return verdict
    trailers = advice(dict(exc.trailing_metadata() or ()))
    return with_wait(verdict, asked_wait(trailers, now_wall=time.time()))


_GRPC: Table = {"RpcError": _by_grpc_code, "UsageError": FATAL}

# ---------------------------------------------------------------------- Qdrant


def _by_qdrant_wait(exc: Any) -> Failure:
    return with_wait(THROTTLED, seconds_of(exc.retry_after_s))


def _by_database_status(exc: Exception) -> Failure:
    status = status_of(exc)
    return UNKNOWN if status is None else by_status(exc, status, DATABASE_PASSING)


def _by_source(exc: Any) -> _Answer:
    """By the transport's error inside; an answer that could not be parsed is a ValueError."""
    source = exc.source
    return (source,) if not isinstance(source, ValueError) else UNKNOWN


_QDRANT: Table = {
    "ResourceExhaustedResponse": _by_qdrant_wait,
    "UnexpectedResponse": _by_database_status,
    "ResponseHandlingException": _by_source,
}

# ---------------------------------------------------------------------- OpenSearch, Elasticsearch


def _by_last_error(exc: Any) -> _Answer:
    """The transport's error, which the clients keep as `info` or as the last of `errors`."""
    inner = getattr(exc, "info", None) or next(reversed(getattr(exc, "errors", ())), None)
    return (inner,) if isinstance(inner, Exception) else UNKNOWN


def _by_serializer(exc: BaseException) -> Failure:
    inner = next((part for part in exc.args if isinstance(part, Exception)), exc)
    return by_reading(inner) if isinstance(inner, ValueError) else FATAL


def _by_bulk_errors(exc: Any) -> Failure:
    """Some of a batch may be written. A document rejected as wrong will be rejected again."""
    answers = [answer for item in exc.errors for answer in item.values()]
    statuses = [answer.get("status") for answer in answers]
    refused = [status for status in statuses if isinstance(status, int)]
    passing = all(of_status(status, DATABASE_PASSING) is not FATAL for status in refused)
    return UNKNOWN if passing else FATAL


_OPENSEARCH: Table = {
    "OpenSearchException": UNKNOWN,
    "TransportError": _by_database_status,
    "ConnectionError": _by_last_error,
    "SerializationError": _by_serializer,
    "BulkIndexError": _by_bulk_errors,
    "ScanError": TRANSIENT,
    **dict.fromkeys(("ImproperlyConfigured", "OpenSearchDslException"), FATAL),
}
_ELASTIC: Table = {
    "ApiError": _by_database_status,
    "UnsupportedProductError": FATAL,
    "TransportError": _by_last_error,
    "SerializationError": _by_serializer,
    "BulkIndexError": _by_bulk_errors,
    "ScanError": TRANSIENT,
}

# ---------------------------------------------------------------------- Milvus

_MILVUS_RATE = frozenset({8, 1807})
_MILVUS_RATE_BEFORE_2_3 = 49
_MILVUS_PASSING = frozenset(
    {2, 3, 4, 7, 11, 12}  # unavailable, or out of something
    | {103, 106, 202, 401, 1002}  # loading, recovering
    | {*range(500, 505), *range(600, 605), *range(901, 907)}  # channels, segments, nodes
)
_MILVUS_UNKNOWN = frozenset({0, 1, 5, 1001, 1302, 10_000, 10_001, 65_535})


def _by_milvus_code(exc: Any) -> _Answer:
    code = exc.code
    if (name := getattr(code, "name", None)) in _GRPC_CODES:
        return _GRPC_CODES[str(name)]
    if code in _MILVUS_RATE or exc.compatible_code == _MILVUS_RATE_BEFORE_2_3:
        return THROTTLED
    if getattr(exc, "is_input_error", False):
        return FATAL
    if getattr(exc, "retriable", False) or code in _MILVUS_PASSING:
        return TRANSIENT
    if code not in _MILVUS_UNKNOWN:
        return FATAL
    return (exc.__cause__,) if isinstance(exc.__cause__, Exception) else UNKNOWN


_MILVUS_MISUSE = (
    "Param CollectionNotExist PartitionAlreadyExist IndexNotExist CannotInferSchema SchemaNotReady "
    "DataTypeNotMatch DataTypeNotSupport DataNotMatch ConnectionNotExist ConnectionConfig "
    "PrimaryKey PartitionKey ClusteringKey FieldsType FunctionsType FieldType AutoID "
    "ServerVersionIncompatible"
)
_PYMILVUS: Table = {
    "MilvusException": _by_milvus_code,
    **dict.fromkeys((f"{name}Exception" for name in _MILVUS_MISUSE.split()), FATAL),
    **dict.fromkeys(("ParamError", "AmbiguousIndexName", "InvalidConsistencyLevel"), FATAL),
    **dict.fromkeys(("ConnectError", "MilvusUnavailableException"), TRANSIENT),
    "SchemaMismatchRetryableException": TRANSIENT,
}

# ---------------------------------------------------------------------- MongoDB

_MONGO_PASSING = frozenset(
    {6, 7, 89, 9001, 262, 134}  # host or network, timed out, not yet a majority
    | {91, 189, 10_107, 11_600, 11_602, 13_435}  # no primary, shutting down, stepping down
    | {112}  # write conflict
)
_MONGO_TIMED_OUT = 50
_COSMOS_RATE = 16_500


def _by_mongo_code(exc: Any) -> Failure:
    if exc.has_error_label("UnknownTransactionCommitResult"):
        return UNKNOWN
    if exc.code == _COSMOS_RATE or exc.has_error_label("SystemOverloadedError"):
        return THROTTLED
    labels = ("RetryableWriteError", "TransientTransactionError", "RetryableError")
    if exc.code in _MONGO_PASSING or any(map(exc.has_error_label, labels)):
        return TRANSIENT
    return UNKNOWN if exc.code == _MONGO_TIMED_OUT else FATAL


def _by_mongo_connection(exc: Any) -> Failure:
    """Unknown, unless the connection was never made: the driver labels a failed handshake."""
    unsent = isinstance(exc.__cause__, ConnectionRefusedError)
    return TRANSIENT if unsent or exc.has_error_label("SystemOverloadedError") else UNKNOWN


def _by_mongo_writes(exc: Any) -> Failure:
    """Some of a batch may be written. A document rejected as wrong will be rejected again."""
    refused = exc.details.get("writeErrors") or ()
    passing = all(write.get("code") in _MONGO_PASSING for write in refused)
    return UNKNOWN if passing else FATAL


def _by_mongo_client_writes(exc: Any) -> _Answer:
    if isinstance(exc.error, Exception):
        return (exc.error,)
    return FATAL if exc.write_errors else UNKNOWN


_PYMONGO: Table = {
    "PyMongoError": FATAL,
    **dict.fromkeys(("ConnectionFailure", "ProtocolError"), UNKNOWN),
    "AutoReconnect": _by_mongo_connection,
    **dict.fromkeys(("NotPrimaryError", "ServerSelectionTimeoutError"), TRANSIENT),
    "WaitQueueTimeoutError": LOCAL,
    "OperationFailure": _by_mongo_code,
    "CursorNotFound": TRANSIENT,
    **dict.fromkeys(("ExecutionTimeout", "WriteConcernError"), UNKNOWN),
    "BulkWriteError": _by_mongo_writes,
    "ClientBulkWriteException": _by_mongo_client_writes,
    "EncryptionError": by_inner("cause", FATAL),
}
DATABASES: Final[dict[str, Table]] = {
    "redis": _REDIS,
    "asyncpg": _ASYNCPG,
    **dict.fromkeys(("psycopg", "psycopg2"), _PSYCOPG),
    "psycopg_pool": _PSYCOPG_POOL,
    "sqlalchemy": _SQLALCHEMY,
    "neo4j": _NEO4J,
    "grpc": _GRPC,
    "qdrant_client": _QDRANT,
    "opensearchpy": _OPENSEARCH,
    **dict.fromkeys(("elasticsearch", "elastic_transport"), _ELASTIC),
    "pymilvus": _PYMILVUS,
    "pymongo": _PYMONGO,
    "bson": {"BSONError": FATAL},
}
