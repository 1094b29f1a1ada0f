"""Errors of SDKs that are not installed for tests: the same names, bases, constructors, attributes.

Each namespace replaces one module. `tests/test_failures_lookalikes.py` holds them against the
real classes wherever those are installed.
"""

# ruff: noqa: A001, N801, N818 - the names are those of the SDKs

from __future__ import annotations

import enum
import importlib
import importlib.util
from typing import Any

import pytest


class botocore_exceptions:
    """botocore 1.44."""

    class BotoCoreError(Exception):
        def __init__(self, **details: Any) -> None:
            super().__init__(details)

    class HTTPClientError(BotoCoreError): ...

    class ConnectionError(BotoCoreError): ...

    class EndpointConnectionError(ConnectionError): ...

    class ConnectTimeoutError(ConnectionError): ...

    class ProxyConnectionError(ConnectionError): ...

    class SSLError(ConnectionError): ...

    class ReadTimeoutError(HTTPClientError): ...

    class ConnectionClosedError(HTTPClientError): ...

    class ResponseStreamingError(HTTPClientError): ...

    class IncompleteReadError(BotoCoreError): ...

    class NoCredentialsError(BotoCoreError): ...

    class ParamValidationError(BotoCoreError): ...

    class ClientError(Exception):
        def __init__(self, error_response: dict[str, Any], operation_name: str) -> None:
            super().__init__(operation_name)
            self.response = error_response

    class EventStreamError(ClientError): ...


class ollama__types:
    """ollama 0.6."""

    class RequestError(Exception): ...

    class ResponseError(Exception):
        def __init__(self, error: str, status_code: int = -1) -> None:
            super().__init__(error)
            self.status_code = status_code


class asyncpg_exceptions:
    """asyncpg 0.32."""

    class InvalidCachedStatementError(Exception): ...

    class PostgresError(Exception):
        sqlstate: str | None = None

    class PostgresConnectionError(PostgresError):
        sqlstate = "08000"

    class ConnectionDoesNotExistError(PostgresConnectionError):
        sqlstate = "08003"

    class ConnectionFailureError(PostgresConnectionError):
        sqlstate = "08006"

    class ClientCannotConnectError(PostgresConnectionError):
        sqlstate = "08001"

    class ConnectionRejectionError(PostgresConnectionError):
        sqlstate = "08004"

    class ReadOnlySQLTransactionError(PostgresError):
        sqlstate = "25006"

    class InvalidPasswordError(PostgresError):
        sqlstate = "28P01"

    class UniqueViolationError(PostgresError):
        sqlstate = "23505"

    class PostgresSyntaxError(PostgresError):
        sqlstate = "42601"

    class SerializationError(PostgresError):
        sqlstate = "40001"

    class TransactionIntegrityConstraintViolationError(PostgresError):
        sqlstate = "40002"

    class StatementCompletionUnknownError(PostgresError):
        sqlstate = "40003"

    class DeadlockDetectedError(PostgresError):
        sqlstate = "40P01"

    class TooManyConnectionsError(PostgresError):
        sqlstate = "53300"

    class LockNotAvailableError(PostgresError):
        sqlstate = "55P03"

    class QueryCanceledError(PostgresError):
        sqlstate = "57014"

    class AdminShutdownError(PostgresError):
        sqlstate = "57P01"

    class CannotConnectNowError(PostgresError):
        sqlstate = "57P03"

    class DatabaseDroppedError(PostgresError):
        sqlstate = "57P04"

    class InternalServerError(PostgresError):
        sqlstate = "XX000"

    class InterfaceError(Exception): ...

    class InternalClientError(Exception): ...

    class ProtocolError(InternalClientError): ...

    class TargetServerAttributeNotMatched(InternalClientError): ...


class neo4j_exceptions:
    """neo4j 6.4. What it makes of a code of the server is its own; here only the results are."""

    class GqlError(Exception):
        retryable = False

        def is_retryable(self) -> bool:
            return self.retryable

    class Neo4jError(GqlError):
        code = "Neo.ClientError.Statement.SyntaxError"

    class ClientError(Neo4jError): ...

    class CypherSyntaxError(ClientError): ...

    class AuthError(ClientError): ...

    class DatabaseError(Neo4jError): ...

    class TransientError(Neo4jError):
        retryable = True

    class DatabaseUnavailable(TransientError): ...

    class NotALeader(TransientError): ...

    class DriverError(GqlError): ...

    class SessionExpired(DriverError):
        retryable = True

    class ServiceUnavailable(DriverError):
        retryable = True

    class IncompleteCommit(ServiceUnavailable):
        retryable = False

    class ConfigurationError(DriverError): ...

    class BrokenRecordError(DriverError): ...

    class ConnectionPoolError(DriverError): ...

    class ConnectionAcquisitionTimeoutError(ConnectionPoolError): ...


class grpc:
    """grpcio 1.85."""

    class StatusCode(enum.Enum):
        CANCELLED = (1, "cancelled")
        UNKNOWN = (2, "unknown")
        INVALID_ARGUMENT = (3, "invalid argument")
        DEADLINE_EXCEEDED = (4, "deadline exceeded")
        NOT_FOUND = (5, "not found")
        ALREADY_EXISTS = (6, "already exists")
        PERMISSION_DENIED = (7, "permission denied")
        RESOURCE_EXHAUSTED = (8, "resource exhausted")
        FAILED_PRECONDITION = (9, "failed precondition")
        ABORTED = (10, "aborted")
        OUT_OF_RANGE = (11, "out of range")
        UNIMPLEMENTED = (12, "unimplemented")
        INTERNAL = (13, "internal")
        UNAVAILABLE = (14, "unavailable")
        DATA_LOSS = (15, "data loss")
        UNAUTHENTICATED = (16, "unauthenticated")

    class RpcError(Exception): ...


class grpc_aio__call:
    """grpcio 1.85, the errors of its asynchronous half."""

    class AioRpcError(grpc.RpcError):
        def __init__(
            self, code: Any, initial_metadata: Any, trailing_metadata: Any, details: Any = None
        ) -> None:
            super().__init__()
            self._parts = (code, details, trailing_metadata)

        def code(self) -> Any:
            return self._parts[0]

        def details(self) -> Any:
            return self._parts[1]

        def trailing_metadata(self) -> Any:
            return self._parts[2]


class qdrant_client_http_exceptions:
    """qdrant-client 1.20."""

    class ApiException(Exception): ...

    class UnexpectedResponse(ApiException):
        def __init__(
            self, status_code: int | None, reason_phrase: str, content: bytes, headers: Any
        ) -> None:
            self.status_code = status_code
            self.headers = headers

    class ResponseHandlingException(ApiException):
        def __init__(self, source: Exception) -> None:
            self.source = source


class qdrant_client_common_client_exceptions:
    """qdrant-client 1.20, the error for both of its protocols."""

    class QdrantException(Exception): ...

    class ResourceExhaustedResponse(QdrantException):
        def __init__(self, message: str, retry_after_s: int) -> None:
            self.retry_after_s = retry_after_s


class pymilvus_exceptions:
    """pymilvus 3.0."""

    class MilvusException(Exception):
        def __init__(
            self,
            code: Any = 1,
            message: str = "",
            compatible_code: int = 1,
            *,
            is_input_error: bool = False,
            retriable: bool = False,
        ) -> None:
            super().__init__()
            self.code = code
            self.compatible_code = compatible_code
            self.is_input_error = is_input_error
            self.retriable = retriable

    class ParamError(MilvusException): ...

    class ConnectError(MilvusException): ...

    class MilvusUnavailableException(MilvusException): ...

    class CollectionNotExistException(MilvusException): ...

    class DataNotMatchException(MilvusException): ...

    class PrimaryKeyException(MilvusException): ...

    class InvalidConsistencyLevel(MilvusException): ...

    class SchemaMismatchRetryableException(MilvusException): ...


class pymongo_errors:
    """pymongo 4.20."""

    class PyMongoError(Exception):
        def __init__(self, message: str = "", error_labels: Any = None) -> None:
            super().__init__(message)
            self._error_labels = set(error_labels or [])

        def has_error_label(self, label: str) -> bool:
            return label in self._error_labels

    class ProtocolError(PyMongoError): ...

    class ConnectionFailure(PyMongoError): ...

    class WaitQueueTimeoutError(ConnectionFailure): ...

    class AutoReconnect(ConnectionFailure):
        def __init__(self, message: str = "", errors: Any = None) -> None:
            labels = errors.get("errorLabels") if isinstance(errors, dict) else None
            super().__init__(message, labels)

    class NetworkTimeout(AutoReconnect): ...

    class NotPrimaryError(AutoReconnect): ...

    class ServerSelectionTimeoutError(AutoReconnect): ...

    class ConfigurationError(PyMongoError): ...

    class InvalidOperation(PyMongoError): ...

    class OperationFailure(PyMongoError):
        def __init__(self, error: str, code: int | None = None, details: Any = None) -> None:
            super().__init__(error, (details or {}).get("errorLabels"))
            self.code = code
            self.details = details

    class CursorNotFound(OperationFailure): ...

    class ExecutionTimeout(OperationFailure): ...

    class WriteConcernError(OperationFailure): ...

    class WTimeoutError(WriteConcernError): ...

    class WriteError(OperationFailure): ...

    class DuplicateKeyError(WriteError): ...

    class BulkWriteError(OperationFailure):
        def __init__(self, results: Any) -> None:
            super().__init__("batch op errors occurred", 65, results)

    class ClientBulkWriteException(OperationFailure):
        def __init__(self, results: Any, verbose: bool) -> None:  # noqa: FBT001 - as it is
            super().__init__("batch op errors occurred", 65, results)

        @property
        def error(self) -> Any:
            return self.details.get("error", None)

        @property
        def write_errors(self) -> Any:
            return self.details.get("writeErrors", {})

    class EncryptionError(PyMongoError):
        def __init__(self, cause: Exception) -> None:
            super().__init__(str(cause))
            self.cause = cause


class zhipuai_core__errors:
    """zhipuai 2.1."""

    class ZhipuAIError(Exception): ...

    class APIStatusError(ZhipuAIError):
        def __init__(self, message: str, *, response: Any) -> None:
            super().__init__(message)
            self.response = response
            self.status_code = response.status_code

    class APIReachLimitError(APIStatusError): ...

    class APIResponseError(ZhipuAIError): ...

    class APIConnectionError(APIResponseError): ...

    class APITimeoutError(APIConnectionError): ...


class elastic_transport__exceptions:
    """elastic-transport 9.4, which elasticsearch 9 raises the errors of."""

    class TransportError(Exception):
        def __init__(self, message: Any, errors: tuple[Exception, ...] = ()) -> None:
            super().__init__(message)
            self.errors = errors

    class ConnectionError(TransportError): ...

    class ConnectionTimeout(TransportError): ...

    class SerializationError(TransportError): ...

    class ApiError(Exception):
        def __init__(self, message: str, meta: Any, body: Any = None) -> None:
            super().__init__(message)
            self.meta = meta
            self.body = body


class bson_errors:
    """bson, which comes with pymongo."""

    class BSONError(Exception): ...

    class InvalidDocument(BSONError): ...


LOOKALIKES: dict[str, Any] = {
    "botocore.exceptions": botocore_exceptions,
    "ollama._types": ollama__types,
    "asyncpg.exceptions": asyncpg_exceptions,
    "neo4j.exceptions": neo4j_exceptions,
    "grpc": grpc,
    "grpc.aio._call": grpc_aio__call,
    "qdrant_client.http.exceptions": qdrant_client_http_exceptions,
    "qdrant_client.common.client_exceptions": qdrant_client_common_client_exceptions,
    "pymilvus.exceptions": pymilvus_exceptions,
    "pymongo.errors": pymongo_errors,
    "bson.errors": bson_errors,
    "zhipuai.core._errors": zhipuai_core__errors,
    "elastic_transport._exceptions": elastic_transport__exceptions,
}


def classes_of(module: str) -> dict[str, type]:
    """The exceptions that replace those of a module, by name."""
    return {
        name: cls
        for name, cls in vars(LOOKALIKES[module]).items()
        if isinstance(cls, type) and issubclass(cls, Exception)
    }


for _module in LOOKALIKES:
    for _name, _cls in classes_of(_module).items():
        _cls.__module__, _cls.__qualname__ = _module, _name


def kinds(package: str) -> list[str]:
    """Which errors of a package there are to test on: the real ones where it is installed."""
    return ["lookalike", *(["real"] if importlib.util.find_spec(package) else [])]


def errors(kind: str, module: str) -> Any:
    """The lookalikes of a module's errors, or the module itself, or the test is skipped."""
    return LOOKALIKES[module] if kind == "lookalike" else importorskip(module)


def importorskip(module: str) -> Any:
    """A module, or the test is skipped where its package is not installed."""
    pytest.importorskip(module.partition(".")[0])
    return importlib.import_module(module)
