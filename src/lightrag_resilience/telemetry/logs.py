"""Logs as lines of JSON, for who collects them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from .correlation import correlation_id

__all__ = ["JsonFormatter"]

_OWN = ("dependency", "state", "reason", "status")


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and what is known besides.

    That is ``correlation_id``, ``dependency``, ``state``, ``reason`` and ``status``, and
    ``exception``, the traceback of an error.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name in _OWN if (value := getattr(record, name, None)) is not None}
        if identity := getattr(record, "correlation_id", None) or correlation_id():
            line["correlation_id"] = identity
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
