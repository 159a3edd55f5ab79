"""Errors and advice as Cloudflare's codes, and the answer for each error (contract-cloudflare sections 3 to 5)."""

import re
from collections.abc import Iterable, Mapping

import msgspec
from litestar import Response

from keystead import errors
from keystead.caller import RequestInfo
from keystead.cloudflare.envelope import JSON, ErrorChainItem, Failure, Item, Source
from keystead.errors import Advice, Clash, Denial, Hint, Limit, Problem, Rule, Scheme, Thing


class ApiError(Exception):
    """A refusal with the status, code and text of the contract."""

    def __init__(
        self, status: int, code: int, text: str, *, chain: tuple[int, str] | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.chain = chain
        self.retry_after = retry_after


# The HTTP status and the meaning of each code, for the error reference.
CODES: dict[int, tuple[int, str]] = {
    971: (429, "The rate limit is used up. Wait for Retry-After seconds."),
    1000: (401, "Invalid API Token: the token that was to be verified is not known."),
    1002: (400, "The certificate is missing, unreadable, or something else; or there is no such certificate (404)."),
    1061: (400, "The account has a zone of this name already."),
    1212: (400, "The quota of custom certificates of this zone is used up."),
    1400: (400, "The body is not JSON, is not an object, or did not arrive in time."),
    1403: (403, "The quota of custom CSRs of this zone or account is used up, or none is allocated."),
    1404: (403, "The operator has switched custom CSRs off for this zone or account."),
    1405: (400, "country is missing or empty."),
    1406: (400, "state is missing or empty."),
    1407: (400, "locality is missing or empty."),
    1408: (400, "organization is missing or empty."),
    1409: (400, "common_name is missing or empty."),
    1410: (400, "common_name has more than 64 characters."),
    1411: (400, "sans is missing or empty; at least one hostname is required."),
    1412: (400, "A SAN is not a well-formed hostname."),
    1413: (400, "A SAN has non-ASCII characters; write it in its A-label form (xn--…)."),
    1414: (400, "A SAN is under a reserved top domain: test, example, invalid or localhost. Name policy public."),
    1415: (400, "A SAN is a public suffix (name policy public), or a wildcard directly on an ICANN one (always)."),
    1416: (400, "A SAN is at or under example.com, example.net or example.org. Name policy public."),
    1417: (400, "key_type is neither rsa2048 nor p256v1; the case counts."),
    1418: (400, "The id of the CSR in the path is not a UUID."),
    1419: (404, "There is no such CSR in this account's or zone's list."),
    1420: (409, "A custom certificate that is not deleted uses the CSR; the text names the certificates."),
    1430: (400, "custom_csr_id is not a UUID."),
    1431: (404, "There is no such custom CSR in this zone or its account."),
    1434: (400, "bundle_method, type, deploy or geo_restrictions.label is not one of its values; case counts."),
    1450: (400, "country is not an ISO 3166-1 code of two upper-case letters, or XX."),
    1451: (400, "A field is too long; lengths are counted in characters."),
    1452: (400, "There are more than 150 SANs."),
    1453: (400, "A field has the wrong JSON type, a control character, or only white space."),
    1454: (413, "The body is larger than 64 KiB, or 256 KiB for certificates."),
    1455: (400, "A query parameter is out of range, of the wrong form, or given twice."),
    1456: (409, "The Idempotency-Key was used with another body, or is not 1 to 255 printable ASCII characters (400)."),
    1457: (400, "The certificate has expired."),
    1459: (400, "The certificate, or one of its chain, is signed with MD2, MD4, MD5, SHA-1 or RIPEMD-160."),
    1460: (400, "The certificate's extended key usage does not have serverAuth."),
    1461: (409, "The account or zone still holds custom CSRs, certificates, CAs or zones; the text counts them."),
    1462: (409, "The token was changed by somebody else at this moment. Read it, and try again."),
    1463: (400, "A policy is empty, or names a resource or permission group that is not there."),
    1464: (400, "A network of condition.request_ip cannot be read, or would match nothing."),
    1465: (403, "The token would be allowed more than whoever makes it: source names the field."),
    1466: (409, "This is the last token of the account that may manage its tokens. Make another one first."),
    1467: (400, "expires_on or not_before is not a time, is in the past, or they are the wrong way round."),
    1468: (404, "There is no such token among this account's or user's."),
    1469: (403, "A list is full: 200 accounts of a user, 10,000 zones of an account, 1,000 tokens of an owner."),
    1480: (200, "Advice: a field is not known and was ignored."),
    1481: (200, "Advice: the common name is not among the SANs, and clients only look at the SANs."),
    1482: (200, "Advice: public CAs no longer certify an organizational unit."),
    1483: (200, "Advice: a SAN is given twice; the CSR names it once."),
    1484: (200, "Advice: public CAs, or the name policy public, would refuse this."),
    1485: (200, "Advice: the key is older than the account's limit; make a new CSR."),
    1486: (200, "Advice: something else; the text says what."),
    1500: (500, "Something unforeseen; the text carries the request id for the operator."),
    1501: (
        503,
        "Not available now; wait for Retry-After seconds. Outcome not known: repeat with the same Idempotency-Key.",
    ),
    2100: (400, "The chain cannot be built or trusted; the text names what is missing or wrong in it."),
    2101: (400, "There are only CA certificates; the server's own is missing."),
    2103: (400, "The certificate names no host of the zone. Name policy public."),
    2106: (
        400,
        "The private key is missing, cannot be read, is encrypted, weak, or of a kind or size that is not accepted.",
    ),
    2200: (400, "The certificate and the key do not match; the text names the custom CSR that does, if there is one."),
    6003: (400, "A header of the credentials is malformed; error_chain names it (6102, 6103 or 6111)."),
    6102: (400, "X-Auth-Email is not an email address; in the error_chain of 6003."),
    6103: (400, "X-Auth-Key is not 32 to 45 lower-case hex characters; in the error_chain of 6003."),
    6111: (400, "Authorization is not Bearer and 20 to 256 of A-Z, a-z, 0-9, '-' and '_'; in the error_chain of 6003."),
    7001: (405, "The path exists, but not with this method; Allow lists those that do."),
    7003: (404, "There is no such path, or an id in it is not 32 lower-case hex characters."),
    9103: (400, "The pair of X-Auth-Email and X-Auth-Key is not known."),
    9106: (400, "There are no credentials, or X-Auth-Email is missing."),
    9107: (400, "X-Auth-Key is missing."),
    9109: (
        403,
        "The token is not valid, not allowed from here, or not permitted; or the account or zone does not exist.",
    ),
}
_MISSING = {"country": 1405, "state": 1406, "locality": 1407, "organization": 1408, "common_name": 1409, "sans": 1411}
RULES: dict[Rule, int] = {
    Rule.BODY: 1400,
    Rule.COMMON_NAME_LENGTH: 1410,
    Rule.NAME_SYNTAX: 1412,
    Rule.NAME_NOT_ASCII: 1413,
    Rule.NAME_RESERVED: 1414,
    Rule.NAME_PUBLIC_SUFFIX: 1415,
    Rule.NAME_EXAMPLE_DOMAIN: 1416,
    Rule.KEY_TYPE: 1417,
    Rule.COUNTRY: 1450,
    Rule.LENGTH: 1451,
    Rule.TOO_MANY_NAMES: 1452,
    Rule.TEXT: 1453,
    Rule.CERTIFICATE: 1002,
    Rule.CSR_ID: 1430,
    Rule.CHOICE: 1434,
    Rule.EXPIRED: 1457,
    Rule.WEAK_SIGNATURE: 1459,
    Rule.EXTENDED_KEY_USAGE: 1460,
    Rule.CHAIN: 2100,
    Rule.NO_LEAF: 2101,
    Rule.ZONE_HOST: 2103,
    Rule.PRIVATE_KEY: 2106,
    Rule.KEY_MISMATCH: 2200,
    Rule.POLICY: 1463,
    Rule.CONDITION: 1464,
    Rule.TIME: 1467,
    Rule.MORE_RIGHTS: 1465,
}
HINTS: dict[Hint, int] = {
    Hint.UNKNOWN_FIELD: 1480,
    Hint.COMMON_NAME_NOT_IN_SANS: 1481,
    Hint.ORGANIZATIONAL_UNIT: 1482,
    Hint.DUPLICATES: 1483,
    Hint.PUBLIC_WOULD_REFUSE: 1484,
    Hint.OLD_KEY: 1485,
    Hint.OTHER: 1486,
}
LIMITS: dict[Limit, tuple[int, int]] = {
    Limit.CSR_QUOTA: (403, 1403),
    Limit.CSRS_OFF: (403, 1404),
    Limit.CERTIFICATE_QUOTA: (400, 1212),
    Limit.LIST: (403, 1469),
}
CLASHES: dict[Clash, tuple[int, int]] = {
    Clash.IDEMPOTENCY_KEY: (409, 1456),
    Clash.IN_USE: (409, 1420),
    Clash.SAME_ZONE: (400, 1061),
    Clash.HOLDS: (409, 1461),
    Clash.LAST_ADMINISTRATOR: (409, 1466),
    Clash.CHANGED: (409, 1462),
}
MISSING_THINGS: dict[Thing, int] = {
    Thing.CSR: 1419,
    Thing.CERTIFICATE: 1002,
    Thing.CSR_OF_CERTIFICATE: 1431,
    Thing.SCOPE: 7003,
    Thing.TOKEN: 1468,
}
_UNAUTHENTICATED = {
    Scheme.TOKEN: (403, 9109, "Invalid access token"),
    Scheme.GLOBAL_KEY: (400, 9103, "Unknown X-Auth-Key or X-Auth-Email"),
}
DENIALS: dict[Denial, int] = {Denial.RESOURCE: 9109, Denial.ADDRESS: 9109, Denial.MORE_RIGHTS: 1465}
_DENIAL_TEXTS: dict[Denial, str] = {
    Denial.RESOURCE: "Unauthorized to access requested resource",
    Denial.ADDRESS: "Cannot use the access token from location: {}",
}


_LINE_ENDS = re.compile("[\n\r\u2028\u2029]")
_IN_DOUBT = "Repeat the request with the same Idempotency-Key; without one, look before you repeat it."


def code_of(problem: Problem) -> int:
    return _MISSING.get(problem.field, 1453) if problem.rule is Rule.MISSING else RULES[problem.rule]


class Reference:
    """Builds error and message items, each with a link into this server's error reference (/docs/errors)."""

    def __init__(self, public_url: str) -> None:
        self._url = f"{public_url}/docs/errors#"

    def item(self, code: int, text: str, pointer: str | None = None) -> Item:
        return Item(code, text, f"{self._url}{code}", Source(pointer) if pointer is not None else None)

    def advice(self, advice: Iterable[Advice]) -> list[Item]:
        """The `messages` of a successful answer."""
        return [self.item(HINTS[a.hint], a.text, _pointer_of(a)) for a in advice]

    def failure(self, error: Exception, request_info: RequestInfo) -> Response[bytes]:
        """The answer for an error; an unexpected exception becomes 1500 without its text."""
        match error:
            case errors.Invalid():
                return self._failure(400, self._items(error.problems))
            case errors.NotFound() if error.thing in MISSING_THINGS:
                return self._one(404, MISSING_THINGS[error.thing], str(error))
            case errors.Conflict() if error.clash in CLASHES:
                # Official clients retry a 409 (the Go client for three minutes) unless this header forbids it.
                return self._one(*CLASHES[error.clash], str(error), {"X-Should-Retry": "false"})
            case errors.Unauthenticated():
                return self._one(*_UNAUTHENTICATED[error.scheme])
            case errors.Forbidden() if error.problems:
                return self._failure(403, self._items(error.problems))
            case errors.Forbidden():
                return self._one(403, DENIALS[error.denial], _DENIAL_TEXTS.get(error.denial, "{}").format(error))
            case errors.LimitReached():
                return self._one(*LIMITS[error.limit], str(error))
            case errors.Unavailable():
                headers = {"Retry-After": str(min(max(error.retry_after, 1), 60))}
                advice = _IN_DOUBT if error.in_doubt else "Please try again."
                return self._one(503, 1501, f"Not available now: {error}. {advice}", headers)
            case ApiError():
                return self._refused(error)
            case _:
                text = f"Something went wrong here. The operator finds it in the log under {request_info.request_id}."
                return self._one(500, 1500, text)

    def _items(self, problems: tuple[Problem, ...]) -> list[Item]:
        # The contract reports problems in the order of their codes; the sort is stable.
        items = [self.item(code_of(p), p.text, _pointer(p.field, p.index, p.member)) for p in problems]
        return sorted(items, key=lambda item: item.code)

    def _refused(self, refused: ApiError) -> Response[bytes]:
        item = self.item(refused.code, str(refused))
        if refused.chain:
            item = msgspec.structs.replace(item, error_chain=[ErrorChainItem(*refused.chain)])
        headers = {"X-Should-Retry": "false"} if refused.code == 1456 else {}
        if refused.retry_after:
            headers["Retry-After"] = str(min(refused.retry_after, 60))
        return self._failure(refused.status, [item], headers)

    def _one(self, status: int, code: int, text: str, headers: Mapping[str, str] | None = None) -> Response[bytes]:
        # The core's messages begin in lower case, because the command line prints them after a colon.
        return self._failure(status, [self.item(code, text[:1].upper() + text[1:])], headers)

    def _failure(self, status: int, items: list[Item], headers: Mapping[str, str] | None = None) -> Response[bytes]:
        body = msgspec.json.encode(Failure(None, False, items, []))
        return Response(body, status_code=status, media_type=JSON, headers=dict(headers or {}))


def _pointer_of(advice: Advice) -> str:
    # An unknown field may have an empty name; other advice without a field concerns the body as such.
    return _pointer(advice.field, advice.index, advice.member) or ("/" if advice.hint is Hint.UNKNOWN_FIELD else "")


def _pointer(field: str, index: int | None, member: str | None = None) -> str:
    """A JSON pointer into the request body (RFC 6901); empty for the body itself."""
    child = str(index) if index is not None else member
    return ("/" + pointed(field) if field else "") + (f"/{child}" if child is not None else "")


def pointed(name: str) -> str:
    """A name as a part of a pointer."""
    # A field name may contain a lone surrogate, which cannot be encoded as UTF-8.
    name = name.encode("utf-8", "backslashreplace").decode("utf-8")
    # The pattern for pointers in Cloudflare's OpenAPI document does not match line ends.
    name = _LINE_ENDS.sub(lambda end: f"\\u{ord(end[0]):04x}", name)
    return name.replace("~", "~0").replace("/", "~1")
