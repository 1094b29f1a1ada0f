"""Log records as lines of JSON."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from .correlation import correlation_id

__all__ = ["JsonFormatter"]

_EXTRAS = ("dependency", "state", "reason", "status")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message.

    Where known also ``correlation_id``, ``dependency``, ``state``, ``reason``, ``status``, and
    ``exception``, the traceback of an error.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of JSON."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {
            name: value for name in _EXTRAS if (value := getattr(record, name, None)) is not None
        }
        # A record may be formatted in another thread, where the context has no id: the
        # filter's attribute comes first.
        if identity := getattr(record, "correlation_id", None) or correlation_id():
            fields["correlation_id"] = identity
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)
