# SPDX-License-Identifier: Apache-2.0
"""Where log lines go: standard error and the log file that the config names, with multus-cni's levels and rotation."""

import gzip
import json
import logging
import logging.handlers
import shutil
import time
from pathlib import Path

from multus_py.cni.text import one_line
from multus_py.config.plugin import LogOptions, MultusConfig

# multus-cni's levels and ours. "panic" logs only what has no lower level.
LEVELS = {
    "debug": logging.DEBUG,
    "verbose": logging.INFO,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
}
_DAY = 86400
_LONGEST = 16_000  # characters of a message: a config of megabytes may stand in an error


class JsonLines(logging.Formatter):
    """One JSON object a line: time (seconds since the epoch), level, message, and the trace of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        body = {"time": record.created, "level": record.levelname.lower(), "message": _message(record)}
        if record.exc_info:
            body["trace"] = self.formatException(record.exc_info)
        return json.dumps(body)


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


class TextLines(logging.Formatter):
    """Time, level and message on one line; the lines of a trace are indented, so that none looks like a log line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        time_of_day = self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z")
        line = f"{time_of_day} [{record.levelname}] {one_line(_message(record))}"
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        return "\n    ".join([line, *map(one_line, trace)])


def start(config: MultusConfig, *, json_lines: bool = False) -> None:
    """Set up the logging of this process as in *config*; a file that cannot be opened is reported on standard error."""
    lines = JsonLines() if json_lines else TextLines()
    log = logging.getLogger("multus_py")
    log.setLevel(LEVELS.get(config.log_level.lower(), logging.WARNING))
    log.propagate = False
    handlers: list[logging.Handler] = [logging.StreamHandler()] if config.log_to_stderr else []
    problem = ""
    if config.log_file:
        try:
            handlers.append(rotating(Path(config.log_file), config.log_options))
        except OSError as cause:
            problem = f"cannot open the log file {config.log_file}: {cause.strerror}"
    for handler in handlers:
        handler.setFormatter(lines)
    log.handlers = handlers
    if problem:
        logging.lastResort.handle(log.makeRecord(log.name, logging.ERROR, "", 0, problem, (), None))  # type: ignore[union-attr]


def rotating(path: Path, options: LogOptions) -> logging.Handler:
    """Return a handler that turns the file over at `max_size` megabytes and keeps `max_backups` for `max_age` days."""
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=options.max_size * 1_000_000, backupCount=options.max_backups
    )
    if options.compress:
        handler.namer = lambda name: name if name.endswith(".gz") else name + ".gz"
        handler.rotator = _pack
    for old in path.parent.glob(path.name + ".*"):
        if options.max_age and old.stat().st_mtime < time.time() - options.max_age * _DAY:
            old.unlink(missing_ok=True)
    return handler


def _pack(source: str, target: str) -> None:
    with Path(source).open("rb") as plain, gzip.open(target, "wb") as packed:
        shutil.copyfileobj(plain, packed)
    Path(source).unlink()
