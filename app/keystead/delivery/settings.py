"""The configuration of `keystead deliver`: a TOML file, of which each fault is told with line and value."""

import grp
import os
import pwd
import re
import shutil
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeAlias
from uuid import UUID

import msgspec
from msgspec import Meta

from keystead.errors import Misconfigured, quoted

_MAX_BYTES = 1024 * 1024
# In the name of a file: the certificate's id, where one delivery has many.
ID = "{id}"


class Format(StrEnum):
    """What a file holds; `combined` is the chain and then the key, as HAProxy reads them."""

    FULLCHAIN = "fullchain"
    PRIVKEY = "privkey"
    COMBINED = "combined"
    PKCS12 = "pkcs12"


_Path: TypeAlias = Annotated[str, Meta(pattern=r"\A/[A-Za-z0-9._/@+-]+\Z", max_length=1024)]
_FileName: TypeAlias = Annotated[
    str, Meta(pattern=r"\A(?:[A-Za-z0-9_]|\{id\})(?:[A-Za-z0-9._-]|\{id\})*\Z", max_length=128)
]
_Word: TypeAlias = Annotated[str, Meta(pattern=r"\A[^\x00]+\Z", max_length=4096)]
_Program: TypeAlias = Annotated[tuple[_Word, ...], Meta(max_length=64)]
_HOST = r"\A(?:\*\.)?[a-z0-9._-]+\Z|\A[0-9a-f:.]+\Z"


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a certificate goes, or those of a zone, and what is run then; `timeout` is in seconds."""

    name: Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]*\Z", max_length=64)]
    folder: _Path
    files: Annotated[dict[Format, _FileName], Meta(min_length=1)]
    certificate: UUID | None = None
    zone: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    host: Annotated[str, Meta(pattern=_HOST, max_length=255)] | None = None
    owner: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    group: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    mode: Annotated[str, Meta(pattern=r"\A0(?:6|4)(?:4|0)0\Z")] = "0600"
    passphrase: _Path | None = None
    check: _Program = ()
    reload: _Program = ()
    haproxy: _Path | None = None
    timeout: Annotated[int, Meta(ge=1, le=600)] = 30

    @property
    def many(self) -> bool:
        """Whether each certificate that fits has files of its own."""
        return any(ID in name for name in self.files.values())

    def names(self, certificate_id: UUID) -> dict[Format, str]:
        return {form: name.replace(ID, str(certificate_id)) for form, name in self.files.items()}

    @property
    def access(self) -> tuple[int, int, int]:
        """The mode, and the numbers of owner and group, -1 for those of this process."""
        owner = pwd.getpwnam(self.owner).pw_uid if self.owner else -1
        group = grp.getgrnam(self.group).gr_gid if self.group else -1
        return int(self.mode, 8), owner, group


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`state` is the file that says what was delivered; `metrics` one for node_exporter's textfile collector.

    `tell` is a program that is told what happens.
    """

    state: _Path
    metrics: _Path | None = None
    tell: _Program = ()
    deliver: Annotated[tuple[Delivery, ...], Meta(min_length=1, max_length=1000)]


_PROGRAM = 'a list of a program and its arguments, such as ["nginx", "-t"]; the program has to be on this host'
# What each setting takes, for the text of a fault.
_TAKES = {
    "state": "the absolute path of a file that this command may write",
    "metrics": "the absolute path of a file that ends in .prom",
    "tell": _PROGRAM,
    "deliver": "one [[deliver]] or more, and 1000 at most",
    "name": "a name of its own: lower-case letters, digits, and . _ - after the first, 64 at most",
    "folder": "an absolute path of letters, digits and . _ / @ + -, without .. and // and a / at its end",
    "files": 'names without folders for fullchain, privkey, combined and pkcs12, such as { fullchain = "site.pem" }',
    "certificate": "the id of a certificate, as `keystead certificate list` shows it",
    "zone": "the id or name of a zone",
    "host": "a host name in lower case with A-labels, *.example.com, or an address",
    "owner": "a user of this host",
    "group": "a group of this host",
    "mode": "0600, 0640, 0400 or 0440, in quotes",
    "passphrase": "the absolute path of a file",
    "check": _PROGRAM,
    "reload": _PROGRAM,
    "haproxy": "the absolute path of HAProxy's runtime socket",
    "timeout": "a number of seconds from 1 to 600",
}


class _Fault(Exception):  # noqa: N818 - the name says what it is
    def __init__(self, key: str, takes: str = "", index: int | None = None) -> None:
        super().__init__(key)
        self.key, self.takes, self.index = key, takes or f"it takes {_TAKES[key]}", index


def load(path: Path) -> Settings:
    """Read the file; raises Misconfigured with its name, the line, and the value that is wrong."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read ({error.strerror})") from None
    if state.st_mode & 0o022 or state.st_uid not in {0, os.geteuid()}:
        # Whoever writes it chooses what is run, and where keys go.
        raise Misconfigured(f"others may write {path}: chown it to root or this user, and chmod it 0644 or less")
    if len(content) > _MAX_BYTES:
        raise Misconfigured(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        text = content.decode("utf-8")
        raw = tomllib.loads(text)
    except UnicodeDecodeError:
        raise Misconfigured(f"{path} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise Misconfigured(f"{path} is not TOML: {error}") from None
    try:
        settings = _converted(raw)
        for fault in _faults(settings):
            raise fault
    except _Fault as fault:
        _refuse(path, text, raw, fault)
    return settings


def _converted(raw: dict[str, Any]) -> Settings:
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        said = str(error)
    place = re.search(r"`\$(?:\.deliver\[(\d+)\])?(?:\.(\w+))?", said)
    index = int(place[1]) if place and place[1] else None
    if unknown := re.search(r"unknown field `(\w*)`", said):
        holder = Settings if index is None else Delivery
        raise _Fault(unknown[1], f"it is not a setting; those are {', '.join(holder.__struct_fields__)}", index)
    if missing := re.search(r"missing required field `(\w+)`", said):
        raise _Fault(missing[1], f"it is missing, and takes {_TAKES[missing[1]]}", index)
    raise _Fault(place[2] if place and place[2] else "deliver", index=index)


def _faults(settings: Settings) -> Iterator[_Fault]:
    """What the types do not say."""
    if settings.metrics and not settings.metrics.endswith(".prom"):
        yield _Fault("metrics")
    if settings.tell and shutil.which(settings.tell[0]) is None:
        yield _Fault("tell")
    names: set[str] = set()
    targets: set[tuple[str, str]] = set()
    for index, delivery in enumerate(settings.deliver):
        for key, takes in _faults_of(delivery):
            yield _Fault(key, takes, index)
        if delivery.name in names:
            yield _Fault("name", "another delivery has this name", index)
        here = {(delivery.folder, name) for name in delivery.files.values()}
        if len(here) < len(delivery.files) or here & targets:
            yield _Fault("files", "one of these files is named twice", index)
        names.add(delivery.name)
        targets |= here


def _faults_of(delivery: Delivery) -> Iterator[tuple[str, str]]:
    if (delivery.certificate is None) == (delivery.zone is None):
        yield "certificate", "it takes either certificate, or zone with or without host, and not both"
    if delivery.host and not delivery.zone:
        yield "host", "it stands beside a zone"
    if delivery.many and not all(ID in name for name in delivery.files.values()):
        yield "files", f"all of the names have {ID}, or none"
    if delivery.zone and not delivery.host and not delivery.many:
        yield "zone", f"it takes a host beside it, or {ID} in the names of all files, for each certificate of the zone"
    if os.path.normpath(delivery.folder) != delivery.folder:
        yield "folder", ""
    if (Format.PKCS12 in delivery.files) != (delivery.passphrase is not None):
        yield "passphrase", "it is needed with pkcs12 in files, and only then"
    if delivery.haproxy and Format.COMBINED not in delivery.files:
        yield "haproxy", "it takes combined in files, as HAProxy reads it"
    yield from _unknown_here(delivery)


def _unknown_here(delivery: Delivery) -> Iterator[tuple[str, str]]:
    """Users, groups and programs that this host does not have."""
    for key, known in (("owner", pwd.getpwnam), ("group", grp.getgrnam)):
        try:
            known(getattr(delivery, key) or "root")
        except KeyError:
            yield key, ""
    for key in ("check", "reload"):
        words = getattr(delivery, key)
        if words and shutil.which(words[0]) is None:
            yield key, ""


def _refuse(path: Path, text: str, raw: dict[str, Any], fault: _Fault) -> NoReturn:
    deliver = raw.get("deliver")
    known = isinstance(deliver, list) and fault.index is not None and isinstance(deliver[fault.index], dict)
    holder = deliver[fault.index] if known and isinstance(deliver, list) and fault.index is not None else raw
    shown = f" is {quoted(str(holder[fault.key]))}" if fault.key in holder and fault.key != "deliver" else ""
    raise Misconfigured(f"{path}:{_line(text, fault)}: {fault.key}{shown}: {fault.takes}")


def _line(text: str, fault: _Fault) -> int:
    """The line of a key, that of the table which lacks it, or 1."""
    table, found = -1, 1
    key = re.compile(rf"\s*\[{{0,2}}\s*(?:deliver\s*\.\s*)?[\"']?{re.escape(fault.key)}[\"']?\s*[=.\]]")
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\s*\[\[\s*deliver\s*\]\]", line):
            table += 1
            found = number if table == fault.index else found
        elif table == (-1 if fault.index is None else fault.index) and key.match(line):
            return number
    return found
