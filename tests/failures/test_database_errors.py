"""What each failure of a database driver means, on lookalikes and, where installed, the real."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from lightrag_resilience.failures.classifier import Failure, FailureKind, classify
from support.lookalikes import errors, kinds
from support.verdicts import FATAL, LOCAL, THROTTLED, TRANSIENT, UNKNOWN, caused

Make = Callable[[Any], Exception]

# ---------------------------------------------------------------------- PostgreSQL

ASYNCPG = [
    *((name, UNKNOWN) for name in ("ConnectionDoesNotExistError", "ConnectionFailureError")),
    *((name, UNKNOWN) for name in ("PostgresConnectionError", "StatementCompletionUnknownError")),
    *((name, UNKNOWN) for name in ("InternalClientError", "ProtocolError", "InternalServerError")),
    *((name, TRANSIENT) for name in ("ClientCannotConnectError", "ConnectionRejectionError")),
    *((name, TRANSIENT) for name in ("SerializationError", "DeadlockDetectedError")),
    *((name, TRANSIENT) for name in ("TooManyConnectionsError", "LockNotAvailableError")),
    *((name, TRANSIENT) for name in ("AdminShutdownError", "CannotConnectNowError")),
    *((name, TRANSIENT) for name in ("QueryCanceledError", "ReadOnlySQLTransactionError")),
    *((name, TRANSIENT) for name in ("InvalidCachedStatementError",)),
    ("TargetServerAttributeNotMatched", TRANSIENT),
    *((name, FATAL) for name in ("InvalidPasswordError", "UniqueViolationError", "PostgresError")),
    *((name, FATAL) for name in ("PostgresSyntaxError", "DatabaseDroppedError")),
    ("TransactionIntegrityConstraintViolationError", FATAL),
]


@pytest.mark.parametrize("kind", kinds("asyncpg"))
@pytest.mark.parametrize(("name", "expected"), ASYNCPG)
def test_asyncpg_errors_by_sqlstate(kind: str, name: str, expected: Failure) -> None:
    error = getattr(errors(kind, "asyncpg.exceptions"), name)("m")
    assert classify(error) == expected


@pytest.mark.parametrize("kind", kinds("asyncpg"))
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("connection is closed", TRANSIENT),
        ("cannot call Connection.fetch(): the underlying connection is closed", TRANSIENT),
        ("cannot perform operation: another operation is in progress", FATAL),
        ("pool is closing", FATAL),
        ("the server expects 1 argument for this query, 2 were passed", FATAL),
    ],
)
def test_an_asyncpg_interface_error_is_misuse_unless_the_connection_was_closed(
    kind: str, message: str, expected: Failure
) -> None:
    assert classify(errors(kind, "asyncpg.exceptions").InterfaceError(message)) == expected


@pytest.mark.parametrize("kind", kinds("asyncpg"))
def test_the_last_error_of_postgres_before_it_closed_the_connection_counts(kind: str) -> None:
    asyncpg = errors(kind, "asyncpg.exceptions")
    lost = asyncpg.ConnectionDoesNotExistError
    assert classify(caused(lost("m"), asyncpg.AdminShutdownError("m"))) == TRANSIENT
    assert classify(caused(lost("m"), asyncpg.InvalidPasswordError("m"))) == FATAL
    assert classify(caused(lost("m"), OSError("m"))) == UNKNOWN


# ---------------------------------------------------------------------- Neo4j


@pytest.mark.parametrize("kind", kinds("neo4j"))
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, TRANSIENT) for name in ("TransientError", "DatabaseUnavailable", "NotALeader")),
        *((name, TRANSIENT) for name in ("SessionExpired", "ServiceUnavailable")),
        ("ConnectionAcquisitionTimeoutError", LOCAL),
        *((name, UNKNOWN) for name in ("IncompleteCommit", "DatabaseError", "BrokenRecordError")),
        *((name, FATAL) for name in ("ClientError", "CypherSyntaxError", "AuthError")),
        *((name, FATAL) for name in ("ConfigurationError", "DriverError", "Neo4jError")),
    ],
)
def test_neo4j_errors_by_is_retryable_except_for_commits(
    kind: str, name: str, expected: Failure
) -> None:
    error = getattr(errors(kind, "neo4j.exceptions"), name)("m")
    if name in {"TransientError", "DatabaseUnavailable", "NotALeader"} and kind == "real":
        error._retryable = True  # as the driver does when it reads the code of the server
    assert classify(error) == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("Neo.TransientError.Transaction.DeadlockDetected", TRANSIENT),
        ("Neo.TransientError.General.DatabaseUnavailable", TRANSIENT),
        ("Neo.ClientError.Cluster.NotALeader", TRANSIENT),
        ("Neo.ClientError.Security.AuthorizationExpired", TRANSIENT),
        ("Neo.TransientError.Transaction.Terminated", FATAL),
        ("Neo.ClientError.Statement.SyntaxError", FATAL),
        ("Neo.ClientError.Security.Unauthorized", FATAL),
        ("Neo.DatabaseError.General.UnknownError", UNKNOWN),
    ],
)
def test_the_codes_of_a_neo4j_server_arrive_as_verdicts(code: str, expected: Failure) -> None:
    neo4j = errors("real", "neo4j.exceptions")
    error = neo4j.Neo4jError._hydrate_neo4j(code=code, message="m")
    assert classify(error) == expected


# ---------------------------------------------------------------------- gRPC


def rpc_error(kind: str, code: str, details: str = "m", trailers: Any = ()) -> Exception:
    status = getattr(errors(kind, "grpc").StatusCode, code)
    error = errors(kind, "grpc.aio._call").AioRpcError(status, (), trailers, details)
    assert isinstance(error, Exception)
    return error


GRPC = [
    *((code, TRANSIENT) for code in ("UNAVAILABLE", "ABORTED")),
    ("RESOURCE_EXHAUSTED", THROTTLED),
    *((code, UNKNOWN) for code in ("DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN", "INTERNAL")),
    ("DATA_LOSS", UNKNOWN),
    *((code, FATAL) for code in ("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS")),
    *((code, FATAL) for code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED")),
    *((code, FATAL) for code in ("FAILED_PRECONDITION", "OUT_OF_RANGE")),
]


@pytest.mark.parametrize("kind", kinds("grpc"))
@pytest.mark.parametrize(("code", "expected"), GRPC)
def test_grpc_errors_by_code(kind: str, code: str, expected: Failure) -> None:
    assert classify(rpc_error(kind, code)) == expected


def test_every_code_of_grpc_has_its_verdict() -> None:
    assert {code.name for code in errors("lookalike", "grpc").StatusCode} == {c for c, _ in GRPC}
    codes = {code.name for code in errors("real", "grpc").StatusCode}
    assert codes - {"OK"} == {code for code, _ in GRPC}


@pytest.mark.parametrize("kind", kinds("grpc"))
def test_a_message_too_large_for_grpc_is_the_callers_fault(kind: str) -> None:
    received = "Received message larger than max (5000000 vs. 4194304)"
    assert classify(rpc_error(kind, "RESOURCE_EXHAUSTED", received)) == FATAL
    assert classify(rpc_error(kind, "INTERNAL", "Exception serializing request!")) == FATAL


@pytest.mark.parametrize("kind", kinds("grpc"))
@pytest.mark.parametrize(
    ("trailers", "seconds"),
    [
        ((("retry-after", "7"),), 7.0),
        ((("x", b"\x00"), ("grpc-retry-pushback-ms", "250")), 0.25),
        ((("retry-after", "soon"),), None),
        (None, None),
    ],
)
def test_the_wait_of_a_throttled_grpc_call_is_in_its_trailers(
    kind: str, trailers: Any, seconds: float | None
) -> None:
    error = rpc_error(kind, "RESOURCE_EXHAUSTED", "m", trailers)
    assert classify(error) == Failure(FailureKind.THROTTLED, seconds)


@pytest.mark.parametrize("kind", kinds("grpc"))
def test_an_rpc_error_without_a_code_leaves_the_outcome_unknown(kind: str) -> None:
    assert classify(errors(kind, "grpc").RpcError("m")) == UNKNOWN


# ---------------------------------------------------------------------- Qdrant


@pytest.mark.parametrize("kind", kinds("qdrant_client"))
@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (503, {}, TRANSIENT),
        (500, {"retry-after": "3"}, Failure(FailureKind.TRANSIENT, 3.0)),
        (429, {}, THROTTLED),
        (404, {}, FATAL),
        (409, {}, FATAL),
        (None, {}, UNKNOWN),
        (304, {}, UNKNOWN),
    ],
)
def test_an_unexpected_response_of_qdrant_is_classified_by_status(
    kind: str, status: int | None, headers: dict[str, str], expected: Failure
) -> None:
    make = errors(kind, "qdrant_client.http.exceptions").UnexpectedResponse
    assert classify(make(status, "m", b"{}", httpx.Headers(headers))) == expected


@pytest.mark.parametrize("kind", kinds("qdrant_client"))
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (httpx.ConnectError("m"), TRANSIENT),
        (httpx.ReadTimeout("m"), UNKNOWN),
        (httpx.UnsupportedProtocol("m"), FATAL),
        (ValueError("an answer that is not of the expected shape"), UNKNOWN),
    ],
)
def test_a_response_handling_error_of_qdrant_is_classified_by_its_source(
    kind: str, source: Exception, expected: Failure
) -> None:
    make = errors(kind, "qdrant_client.http.exceptions").ResponseHandlingException
    assert classify(make(source)) == expected


@pytest.mark.parametrize("kind", kinds("qdrant_client"))
@pytest.mark.parametrize(("header", "seconds"), [(7, 7.0), (0, 0.0), (-1, None), (10**30, None)])
def test_the_wait_of_a_throttled_qdrant_call(kind: str, header: int, seconds: float | None) -> None:
    module = errors(kind, "qdrant_client.common.client_exceptions")
    error = module.ResourceExhaustedResponse("m", header)
    assert classify(error) == Failure(FailureKind.THROTTLED, seconds)


def test_errors_of_the_real_qdrant_client() -> None:
    qdrant = pytest.importorskip("qdrant_client")
    answers = {
        "/collections": httpx.Response(429, headers={"retry-after": "9"}, json={"status": {}}),
        "/collections/a": httpx.Response(502),
    }

    def found(call: Callable[[], object]) -> Failure:
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever, it is looked at
            call()
        return classify(caught.value)

    transport = httpx.MockTransport(lambda request: answers[request.url.path])
    client = qdrant.QdrantClient("http://q", check_compatibility=False, transport=transport)
    assert found(client.get_collections) == Failure(FailureKind.THROTTLED, 9.0)
    assert found(lambda: client.get_collection("a")) == TRANSIENT
    client = qdrant.QdrantClient("http://127.0.0.1:9", check_compatibility=False, trust_env=False)
    assert found(client.get_collections) == TRANSIENT


# ---------------------------------------------------------------------- Milvus


MILVUS: list[tuple[Make, Failure]] = [
    (lambda m: m.MilvusException(8), THROTTLED),
    (lambda m: m.MilvusException(1, "m", 49), THROTTLED),
    (lambda m: m.MilvusException(2), TRANSIENT),
    (lambda m: m.MilvusException(503), TRANSIENT),
    (lambda m: m.MilvusException(903), TRANSIENT),
    (lambda m: m.MilvusException(106), TRANSIENT),
    (lambda m: m.MilvusException(1100, retriable=True), TRANSIENT),
    (lambda m: m.MilvusException(2, is_input_error=True), FATAL),
    (lambda m: m.MilvusException(9), FATAL),
    (lambda m: m.MilvusException(100), FATAL),
    (lambda m: m.MilvusException(429), FATAL),
    (lambda m: m.MilvusException(700), FATAL),
    (lambda m: m.MilvusException(1100), FATAL),
    (lambda m: m.MilvusException(1), UNKNOWN),
    (lambda m: m.MilvusException(65_535), UNKNOWN),
    (lambda m: caused(m.MilvusException(1), ConnectionRefusedError()), TRANSIENT),
    (lambda m: caused(m.MilvusException(1), TimeoutError()), UNKNOWN),
    (lambda m: m.ParamError(), FATAL),
    (lambda m: m.CollectionNotExistException(), FATAL),
    (lambda m: m.DataNotMatchException(), FATAL),
    (lambda m: m.PrimaryKeyException(), FATAL),
    (lambda m: m.InvalidConsistencyLevel(), FATAL),
    (lambda m: m.ConnectError(2), TRANSIENT),
    (lambda m: m.MilvusUnavailableException(), TRANSIENT),
    (lambda m: m.SchemaMismatchRetryableException(), TRANSIENT),
]


@pytest.mark.parametrize("kind", kinds("pymilvus"))
@pytest.mark.parametrize(("make", "expected"), MILVUS)
def test_milvus_errors_by_code(kind: str, make: Make, expected: Failure) -> None:
    assert classify(make(errors(kind, "pymilvus.exceptions"))) == expected


@pytest.mark.parametrize("kind", kinds("pymilvus"))
@pytest.mark.parametrize(("code", "expected"), GRPC)
def test_milvus_errors_with_a_grpc_code(kind: str, code: str, expected: Failure) -> None:
    status = getattr(errors(kind, "grpc").StatusCode, code)
    assert classify(errors(kind, "pymilvus.exceptions").MilvusException(status)) == expected


def test_milvus_errors_without_retriable_are_classified_by_code() -> None:
    error = errors("lookalike", "pymilvus.exceptions").MilvusException(2)
    del error.retriable, error.is_input_error
    assert classify(error) == TRANSIENT


# ---------------------------------------------------------------------- MongoDB


def labelled(*labels: str) -> dict[str, Any]:
    return {"errorLabels": list(labels)}


MONGO: list[tuple[Make, Failure]] = [
    *(
        (lambda m, code=code: m.OperationFailure("m", code), TRANSIENT)
        for code in (6, 7, 89, 91, 112, 134, 189, 262, 9001, 10107, 11600, 11602, 13435)
    ),
    *(
        (lambda m, code=code: m.OperationFailure("m", code), FATAL)
        for code in (2, 13, 18, 503, 8000, None)
    ),
    (lambda m: m.OperationFailure("m", 1, labelled("RetryableWriteError")), TRANSIENT),
    (lambda m: m.OperationFailure("m", 1, labelled("TransientTransactionError")), TRANSIENT),
    (lambda m: m.OperationFailure("m", 91, labelled("UnknownTransactionCommitResult")), UNKNOWN),
    (lambda m: m.OperationFailure("m", 1, labelled("SystemOverloadedError")), THROTTLED),
    (lambda m: m.OperationFailure("m", 16500), THROTTLED),
    (lambda m: m.OperationFailure("m", 50), UNKNOWN),
    (lambda m: m.ExecutionTimeout("m", 50), UNKNOWN),
    (lambda m: m.WTimeoutError("m", 64), UNKNOWN),
    (lambda m: m.WriteConcernError("m", 91), UNKNOWN),
    (lambda m: m.CursorNotFound("m", 43), TRANSIENT),
    (lambda m: m.DuplicateKeyError("m", 11000), FATAL),
    (lambda m: m.ConfigurationError("m"), FATAL),
    (lambda m: m.InvalidOperation("m"), FATAL),
    (lambda m: m.ProtocolError("m"), UNKNOWN),
    (lambda m: m.ConnectionFailure("m"), UNKNOWN),
    (lambda m: m.AutoReconnect("m"), UNKNOWN),
    (lambda m: m.AutoReconnect("m", labelled("RetryableWriteError")), UNKNOWN),
    (lambda m: m.AutoReconnect("m", labelled("SystemOverloadedError")), TRANSIENT),
    (lambda m: caused(m.AutoReconnect("m"), ConnectionRefusedError()), TRANSIENT),
    (lambda m: caused(m.AutoReconnect("m"), ConnectionResetError()), UNKNOWN),
    (lambda m: m.NetworkTimeout("m"), UNKNOWN),
    (lambda m: m.NotPrimaryError("m"), TRANSIENT),
    (lambda m: m.ServerSelectionTimeoutError("m"), TRANSIENT),
    (lambda m: m.WaitQueueTimeoutError("m"), LOCAL),
    (lambda m: m.BulkWriteError({"writeErrors": [{"code": 11000}]}), FATAL),
    (lambda m: m.BulkWriteError({"writeErrors": [{"code": 91}, {"code": 11000}]}), FATAL),
    (lambda m: m.BulkWriteError({"writeErrors": [{"code": 91}]}), UNKNOWN),
    (lambda m: m.BulkWriteError({"writeConcernErrors": [{"code": 64}]}), UNKNOWN),
    (lambda m: m.ClientBulkWriteException({"error": m.NotPrimaryError("m")}, False), TRANSIENT),
    (lambda m: m.ClientBulkWriteException({"writeErrors": [{"code": 1}]}, False), FATAL),
    (lambda m: m.ClientBulkWriteException({}, False), UNKNOWN),
    (lambda m: m.EncryptionError(m.NetworkTimeout("m")), UNKNOWN),
    (lambda m: m.EncryptionError(ValueError("m")), FATAL),
]


@pytest.mark.parametrize("kind", kinds("pymongo"))
@pytest.mark.parametrize(("make", "expected"), MONGO)
def test_mongo_errors_by_label_code_and_class(kind: str, make: Make, expected: Failure) -> None:
    assert classify(make(errors(kind, "pymongo.errors"))) == expected


@pytest.mark.parametrize("kind", kinds("pymongo"))
def test_a_document_that_cannot_be_sent_is_the_callers_fault(kind: str) -> None:
    assert classify(errors(kind, "bson.errors").InvalidDocument("m")) == FATAL


def test_a_refused_port_is_transient_with_the_real_mongo_driver() -> None:
    pymongo = pytest.importorskip("pymongo")
    client = pymongo.MongoClient("mongodb://127.0.0.1:9", serverSelectionTimeoutMS=100)
    with client, pytest.raises(Exception) as caught:  # noqa: PT011 - whichever, it is looked at
        client.a.b.find_one()
    assert classify(caught.value) == TRANSIENT


# ---------------------------------------------------------------------- odd shapes


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("asyncpg.exceptions", "PostgresError"),
        ("grpc.aio._call", "AioRpcError"),
        ("pymilvus.exceptions", "MilvusException"),
        ("pymongo.errors", "OperationFailure"),
        ("qdrant_client.http.exceptions", "ResponseHandlingException"),
    ],
)
def test_an_error_without_its_usual_attributes_still_has_a_verdict(module: str, name: str) -> None:
    cls = getattr(errors("lookalike", module), name)
    bare = type("BareError", (cls,), {"__init__": Exception.__init__})
    assert classify(bare()).kind in FailureKind
