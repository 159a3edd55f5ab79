"""The format of the log on standard error, JSON or for people, for granian's records and ours."""

import logging
import sys

import structlog
from structlog.typing import Processor

from keystead.config import LogFormat

_COMMON: tuple[Processor, ...] = (
    structlog.processors.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


def _renderers(log: LogFormat) -> tuple[Processor, ...]:
    if log is LogFormat.JSON:
        return structlog.processors.format_exc_info, structlog.processors.JSONRenderer()
    # structlog's default tracebacks show local variables, which may be secret.
    plain = structlog.dev.plain_traceback
    return (structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain),)


def configure(log: LogFormat) -> None:
    """Configure structlog, in this process."""
    structlog.configure(
        processors=[*_COMMON, *_renderers(log)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # One write for a line: workers share the stream, and half lines would mix.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _formatter(log: LogFormat) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_COMMON,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log)],
    )


def for_granian(log: LogFormat) -> dict[str, object]:
    """The configuration of `logging`, which granian applies in all its processes."""
    logger = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    return {
        "formatters": {"lines": {"()": _formatter, "log": log}},
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"},
        },
        "loggers": {"_granian": logger, "keystead": logger},
    }
