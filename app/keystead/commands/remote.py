"""The API of a server for `keystead csr` and `keystead certificate`: Cloudflare's dialect over HTTP."""

import asyncio
import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

import msgspec

from keystead import __version__
from keystead.caller import Scope
from keystead.cloudflare.custom_certificates import CustomCertificate
from keystead.cloudflare.custom_csrs import CustomCsr
from keystead.cloudflare.envelope import Item, ResultInfo
from keystead.commands import terminal
from keystead.csrs.model import CsrQuery
from keystead.errors import Conflict, KeysteadError, Misconfigured, NotFound, Unavailable, quoted
from keystead.identity.zones import lookup_name
from keystead.ids import hex32
from keystead.x509.subjects import SubjectDefaults

T = TypeVar("T")
# Longer than the server's own time-outs, so that its answer is waited for.
SECONDS = 60.0
_MAX_ANSWER = 16 * 1024 * 1024
_PAGE = 50


class ServerError(KeysteadError):
    """The server refused; the text has its sentences."""


class ForbiddenError(ServerError):
    """The credential may not do this, or it is not there."""


class _Account(msgspec.Struct, frozen=True):
    csr_subject: SubjectDefaults = SubjectDefaults()


class _Owner(msgspec.Struct, frozen=True):
    id: str


class _Zone(msgspec.Struct, frozen=True):
    id: str
    name: str
    account: _Owner


class _Answer(msgspec.Struct, frozen=True):
    result: msgspec.Raw = msgspec.Raw(b"null")
    errors: list[Item] = []
    messages: list[Item] = []
    result_info: ResultInfo | None = None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The credential must not follow to another address."""

    def redirect_request(self, *_: object) -> None:
        return None


class Remote:
    """The calls of commands.access.Access, over HTTP."""

    def __init__(self, base_url: str, headers: Mapping[str, str], account_id: str | None) -> None:
        self._base_url, self._headers, self._account_id = base_url.rstrip("/"), headers, account_id
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __repr__(self) -> str:
        return f"Remote({self._base_url})"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Remote | None":
        """The server that the variables of Cloudflare's SDKs name; None without an address or a credential."""
        base_url, token = environ.get("CLOUDFLARE_BASE_URL"), environ.get("CLOUDFLARE_API_TOKEN")
        email, key = environ.get("CLOUDFLARE_EMAIL"), environ.get("CLOUDFLARE_API_KEY")
        if not base_url or not (token or (email and key)):
            return None
        address = urlsplit(base_url)
        if address.scheme not in {"http", "https"} or address.username is not None:
            raise Misconfigured("CLOUDFLARE_BASE_URL must be an address such as http://127.0.0.1:8787/client/v4")
        credential = {"Authorization": f"Bearer {token}"} if token else {"X-Auth-Email": email, "X-Auth-Key": key}
        headers = {name: value or "" for name, value in credential.items()}
        return cls(base_url, headers, environ.get("CLOUDFLARE_ACCOUNT_ID"))

    async def account(self, word: str | None) -> Scope:
        word = word or self._account_id
        known = hex32(word) if word else None
        if known is not None:
            return Scope(known)
        found = await self._pages("/accounts", {"name": word} if word else {}, list[_Owner])
        return Scope(_one(found, f"account {quoted(word)}" if word else "account", "--account"))

    async def zones(self, account: Scope) -> Mapping[str, Scope]:
        found = await self._pages("/zones", {"account.id": account.account_id.hex}, list[_Zone])
        return {lookup_name(zone.name): _scope(zone) for zone in found}

    async def zone(self, word: str) -> Scope:
        if hex32(word) is not None:
            return _scope(await self._call("GET", f"/zones/{word}", _Zone))
        found = await self._pages("/zones", {"name": word.lower()}, list[_Zone])
        wanted = _one([_Owner(zone.id) for zone in found], f"zone {quoted(word)}", "--zone")
        return next(_scope(zone) for zone in found if zone.id == wanted.hex)

    async def csr_subject(self, scope: Scope) -> SubjectDefaults:
        try:
            return (await self._call("GET", f"/accounts/{scope.account_id.hex}", _Account)).csr_subject
        except ForbiddenError:
            text = "this credential may not read the account (Account Settings Read), nor what it sets for the subject"
            terminal.print_note(text)
            return SubjectDefaults()

    async def create_csr(self, scope: Scope, body: bytes) -> CustomCsr:
        return await self._call("POST", f"{_path(scope)}/custom_csrs", CustomCsr, body)

    async def csrs(self, scope: Scope, query: CsrQuery) -> list[CustomCsr]:
        filters = {
            name: value for name in ("common_name", "san", "name", "key_type") if (value := getattr(query, name))
        }
        most = query.per_page or terminal.MAX_ROWS
        return await self._pages(f"{_path(scope)}/custom_csrs", filters, list[CustomCsr], most)

    async def csr(self, scope: Scope, csr_id: UUID) -> CustomCsr:
        return await self._call("GET", f"{_path(scope)}/custom_csrs/{csr_id}", CustomCsr)

    async def delete_csr(self, scope: Scope, csr_id: UUID) -> None:
        await self._call("DELETE", f"{_path(scope)}/custom_csrs/{csr_id}", object)

    async def certificate(self, scope: Scope, certificate_id: UUID) -> CustomCertificate:
        return await self._call("GET", f"{_path(scope)}/custom_certificates/{certificate_id}", CustomCertificate)

    async def upload(self, scope: Scope, body: bytes) -> CustomCertificate:
        return await self._call("POST", f"{_path(scope)}/custom_certificates", CustomCertificate, body)

    async def renew(self, scope: Scope, certificate_id: UUID, body: bytes) -> CustomCertificate:
        return await self._call(
            "PATCH", f"{_path(scope)}/custom_certificates/{certificate_id}", CustomCertificate, body
        )

    async def delete_certificate(self, scope: Scope, certificate_id: UUID) -> None:
        await self._call("DELETE", f"{_path(scope)}/custom_certificates/{certificate_id}", object)

    async def set_renewal(self, scope: Scope, certificate_id: UUID, body: bytes) -> CustomCertificate:
        path = f"{_path(scope)}/custom_certificates/{certificate_id}/keystead_renewal"
        return await self._call("PUT", path, CustomCertificate, body)

    async def remove_renewal(self, scope: Scope, certificate_id: UUID) -> None:
        path = f"{_path(scope)}/custom_certificates/{certificate_id}/keystead_renewal"
        await self._call("DELETE", path, object)

    async def _pages(self, path: str, filters: Mapping[str, str], kind: type[list[T]], most: int = 1000) -> list[T]:
        found: list[T] = []
        for page in range(1, -(-most // _PAGE) + 1):
            query = urlencode({**filters, "page": page, "per_page": _PAGE}, quote_via=quote)
            answer = await self._answer("GET", f"{path}?{query}")
            found += self._result(answer, kind)
            if answer.result_info is None or page >= answer.result_info.total_pages:
                break
        return found[:most]

    async def _call(self, method: str, path: str, kind: type[T], body: bytes | None = None) -> T:
        answer = await self._answer(method, path, body)
        for item in answer.messages:
            terminal.print_note(item.message)
        return self._result(answer, kind)

    async def _answer(self, method: str, path: str, body: bytes | None = None) -> _Answer:
        status, raw, wait = await asyncio.to_thread(self._send, method, path, body)
        try:
            answer = msgspec.json.decode(raw, type=_Answer)
        except msgspec.MsgspecError:
            raise self._not_keystead(status) from None
        if 200 <= status < 300:
            return answer
        text = "\n".join(_sentence(item) for item in answer.errors)
        if status == 404:
            raise NotFound(text)
        if status == 403:
            raise ForbiddenError(text)
        if status == 409:
            raise Conflict(text)
        raise ServerError(f"{text} Try again in {wait} seconds." if wait else text or f"status {status}")

    def _result(self, answer: _Answer, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(answer.result, type=kind)
        except msgspec.MsgspecError:
            raise self._not_keystead(200) from None

    def _not_keystead(self, status: int) -> ServerError:
        return ServerError(f"{self._base_url} answers with status {status}, but not as Keystead does")

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes, str | None]:
        headers = {**self._headers, "User-Agent": f"keystead/{__version__}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        url = f"{self._base_url}{path}"
        request = urllib.request.Request(url, data=body, headers=headers, method=method)  # noqa: S310 - http or https
        try:
            with self._opener.open(request, timeout=SECONDS) as answer:
                return answer.status, answer.read(_MAX_ANSWER), None
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, refused.read(_MAX_ANSWER), refused.headers.get("Retry-After")
        except ValueError:
            # Without its text, which quotes the header with the credential.
            text = (
                "CLOUDFLARE_BASE_URL or the credential has a character that a request cannot have, such as a line break"
            )
            raise Misconfigured(text) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            known = method == "GET" or isinstance(reason, ConnectionRefusedError)
            doubt = "" if known else "; it may have done what was asked: look before you repeat it"
            raise Unavailable(f"{self._base_url} does not answer ({reason}){doubt}") from None


def _path(scope: Scope) -> str:
    return f"/zones/{scope.zone_id.hex}" if scope.zone_id else f"/accounts/{scope.account_id.hex}"


def _scope(zone: _Zone) -> Scope:
    return Scope(UUID(zone.account.id), UUID(zone.id))


def _one(found: list[_Owner], what: str, option: str) -> UUID:
    if not found:
        raise NotFound(f"there is no {what} that this credential may read")
    if len(found) > 1:
        raise Conflict(f"this credential reads {len(found)} of {what}; name one by its id with {option}")
    return UUID(found[0].id)


def _sentence(item: Item) -> str:
    where = f" ({item.source.pointer})" if item.source else ""
    return f"{item.code}: {item.message}{where}"
