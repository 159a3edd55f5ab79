"""What we use of libraries that is not public: each has an upper bound, and what must be there stands here."""

import inspect
import re
from importlib import metadata

import prometheus_client
import pytest
from cryptography import x509
from cryptography.x509 import name
from granian.server.mp import MPServer
from litestar.handlers import HTTPRouteHandler
from packaging.requirements import Requirement

HISTOGRAM = prometheus_client.Histogram("reached_into", "Not registered.", registry=None)
ATTRIBUTE = x509.NameAttribute(x509.NameOID.COMMON_NAME, "a")
REACHED: dict[str, tuple[tuple[object, str, tuple[str, ...]], ...]] = {
    "granian": (
        (MPServer, "_respawn_workers", ("workers", "spawn_target", "target_loader", "delay")),
        (MPServer, "_reload", ("spawn_target", "target_loader")),
        (MPServer, "_spawn_worker", ("idx", "target", "callback_loader")),
        (MPServer, "signal_handler_reload", ()),
    ),
    "litestar": (
        (HTTPRouteHandler, "on_registration", ("app",)),
        (HTTPRouteHandler, "resolve_exception_handlers", ()),
        (HTTPRouteHandler, "resolve_middleware", ()),
        (HTTPRouteHandler, "create_kwargs_model", ("path_parameters",)),
    ),
    "cryptography": (
        (x509.NameAttribute, "__init__", ("oid", "value", "_type", "_validate")),
        (name, "_ASN1Type", ()),
        (ATTRIBUTE, "_type", ()),
    ),
    "prometheus-client": ((HISTOGRAM, "_sum", ()), (HISTOGRAM, "_buckets", ())),
}


@pytest.mark.parametrize("library", REACHED)
def test_what_we_reach_into_is_still_there(library: str) -> None:
    """Methods and parameters have the names that we override, call or pass."""
    for owner, member, parameters in REACHED[library]:
        where = f"{library} {metadata.version(library)}: {getattr(owner, '__name__', owner)}.{member}"
        found = getattr(owner, member, None)
        assert found is not None, f"{where} is gone; look where we use it before you raise the bound"
        if inspect.isfunction(found):
            names = tuple(
                each for each in inspect.signature(found).parameters if each not in {"self", "args", "kwargs"}
            )
            assert names == parameters, f"{where} takes {names} now; look where we use it before you raise the bound"


def test_each_has_an_upper_bound_above_the_tested_release() -> None:
    """Each has an upper bound, and what is installed here, where these tests run, is below it."""
    required = metadata.requires("keystead") or []
    for library in REACHED:
        (line,) = (each for each in required if re.match(rf"{library}\b", each))
        specifier = Requirement(line).specifier
        assert any(each.operator == "<" for each in specifier), f"{line}: we use parts of it that are not public"
        assert specifier.contains(metadata.version(library)), line
