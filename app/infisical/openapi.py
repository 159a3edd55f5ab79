"""This dialect's part of the OpenAPI 3.1 document; the answers' schemas come from the Structs that encode them."""

from typing import Any, NamedTuple

import msgspec

from app.ca import authorities
from app.ca.crls import Reason
from app.ca.model import CaType
from app.infisical import auth, ca, certificates, crl, status, wire
from app.x509 import pkix, subjects

Json = dict[str, Any]
_UUID = {"type": "string", "format": "uuid"}
_INSTANT = {"type": "string", "format": "date-time"}
_DATE = {"type": "string", "description": "2029, 2029-06, 2029-06-12, or ISO 8601."}
_CSR = {"type": "string", "minLength": 1, "description": "PEM."}
_TAG = "Private CA"
_CA, _NEWER = "/api/v1/pki/ca/{caId}", "/api/v1/cert-manager/ca/internal/{caId}"
_SERIAL = "/api/v1/pki/certificates/{serialNumber}"
_STRUCTS = (
    *(auth.AccessToken, status.Status, ca.CaAnswer, ca.InternalCa, ca.Csr, ca.SignedCertificate),
    *(ca.IssuedCertificate, ca.CertificateWithChain, ca.CaVersion, ca.Imported, crl.Crl, crl.IdentifiedCrl),
    *(certificates.CertificateAnswer, certificates.Revoked),
)


class _Call(NamedTuple):
    """One operation; `answer` is the name of a schema, in brackets for a list of it, or a media type."""

    method: str
    path: str
    operation_id: str
    summary: str
    answer: str
    body: str | None = None
    anybodys: bool = False


_OF_CA = (
    _Call("get", "", "getCa", "Get a CA", "CaAnswer"),
    _Call("patch", "", "editCa", "Disable or enable a CA", "CaAnswer", "CaChange"),
    _Call("delete", "", "deleteCa", "Delete a CA and destroy its key", "CaAnswer"),
    _Call("get", "/csr", "getCaCsr", "Get the CSR of an intermediate CA, signed now", "Csr"),
    _Call(
        *("post", "/sign-intermediate", "signIntermediate", "Sign the CSR of another CA"),
        *("SignedCertificate", "IntermediateRequest"),
    ),
    _Call(
        "post", "/import-certificate", "importCertificate", "Install a CA's certificate", "Imported", "ImportRequest"
    ),
    _Call("get", "/certificate", "getCaCertificate", "Get the CA's certificate", "CertificateWithChain"),
    _Call("get", "/ca-certificates", "listCaCertificates", "Get all certificates that the CA has had", "[CaVersion]"),
    _Call(
        "post", "/renew", "renewCa", "Renew the CA's certificate for the same key", "CertificateWithChain", "Renewal"
    ),
    _Call("post", "/sign-certificate", "signCertificate", "Sign a CSR", "SignedCertificate", "LeafRequest"),
    _Call(
        *("post", "/issue-certificate", "issueCertificate", "Make a key, returned once, and its certificate"),
        *("IssuedCertificate", "IssueRequest"),
    ),
    _Call("get", "/crl", "getCrl", "Get the CRL", "Crl"),
    _Call("get", "/crls", "listCrls", "Get the CRL in a list", "[IdentifiedCrl]"),
    _Call(
        *("get", "/certificates/{caCertId}/der", "downloadCaCertificate", "Download a CA's certificate"),
        *("application/pkix-cert", None, True),
    ),
)
_OTHERS = (
    _Call("get", "/api/status", "getStatus", "Say that the server is here", "Status", anybodys=True),
    _Call(
        *("post", "/api/v1/auth/universal-auth/login", "logIn", "Get an access token for an API token"),
        *("AccessToken", "LoginRequest", True),
    ),
    _Call("post", "/api/v1/pki/ca", "createCa", "Make a CA", "CaAnswer", "CaRequest"),
    _Call("get", "/api/v1/cert-manager/ca/internal", "listCas", "List the CAs of a project", "[InternalCa]"),
    _Call(*("get", "/api/v1/pki/crl/{crlId}/der", "downloadCrl", "Download a CRL", "application/pkix-crl", None, True)),
    _Call(
        *("post", "/api/v1/pki/certificates/sign-certificate", "signCertificateOfCa", "Sign a CSR"),
        *("SignedCertificate", "LeafRequestOfCa"),
    ),
    _Call("get", _SERIAL, "getCertificate", "Get what is known of a certificate", "CertificateAnswer"),
    _Call(
        *("get", f"{_SERIAL}/certificate", "getCertificateBody", "Get a certificate with its chain"),
        "CertificateWithChain",
    ),
    _Call("post", f"{_SERIAL}/revoke", "revokeCertificate", "Revoke a certificate", "Revoked", "Revocation"),
)
_REASONS = {
    400: "The request contradicts a rule, or the state of the CA.",
    401: "There is no token, or it is not known.",
    403: "The token is malformed or expired, or not permitted; then there are `details`.",
    404: "There is no such CA, certificate, project or path for this caller.",
    413: "The body is larger than 1 MiB.",
    422: "A field is wrong or missing.",
    429: "The rate limit is used up.",
    500: "Something went wrong here.",
    503: "The database or the key queue is not available.",
}


def paths() -> Json:
    """All paths, from the root of the server."""
    found: Json = {}
    calls = [*_OTHERS, *(call._replace(path=_CA + call.path) for call in _OF_CA)]
    calls += [call._replace(path=_NEWER + call.path, operation_id=f"{call.operation_id}Newer") for call in _OF_CA]
    for call in calls:
        item = found.setdefault(call.path, {"servers": [{"url": "/"}], "parameters": _parameters(call.path)})
        item[call.method] = _operation(call)
    return found


def _parameters(path: str) -> list[Json]:
    schemas = {"caId": _UUID, "caCertId": _UUID, "crlId": _UUID}
    serial = {"type": "string", "pattern": "^[4-7][0-9a-f]{39}$"}
    return [
        {"name": segment[1:-1], "in": "path", "required": True, "schema": schemas.get(segment[1:-1], serial)}
        for segment in path.split("/")
        if segment.startswith("{")
    ]


def _operation(call: _Call) -> Json:
    made: Json = {"operationId": call.operation_id, "summary": call.summary, "tags": [_TAG]}
    made["security"] = [] if call.anybodys else [{"api_token": []}]
    if call.operation_id == "listCas":
        made["parameters"] = [{"name": "projectId", "in": "query", "required": True, "schema": _UUID}]
    if call.body:
        schema = {"$ref": f"#/components/schemas/{call.body}"}
        forms = (wire.JSON, "application/x-www-form-urlencoded") if call.body == "LoginRequest" else (wire.JSON,)
        made["requestBody"] = {"required": True, "content": {form: {"schema": schema} for form in forms}}
    return {**made, "responses": {"200": _answer(call.answer), **_failures(call)}}


def _answer(answer: str) -> Json:
    if "/" in answer:
        return {"description": "The file, in DER.", "content": {answer: {}}}
    schema: Json = {"$ref": f"#/components/schemas/{answer.strip('[]')}"}
    if answer.startswith("["):
        schema = {"type": "array", "items": schema}
    return {"description": "Done.", "content": {wire.JSON: {"schema": schema}}}


def _failures(call: _Call) -> Json:
    known = {500, 503}
    if call.path != "/api/status":
        known |= {404} if call.anybodys else {400, 401, 403, 404, 429}
    if call.body:
        known |= {400, 401, 413, 422, 429}
    if call.operation_id == "listCas":
        known.add(422)
    made = {}
    for status_code in sorted(known):
        schema = {"$ref": f"#/components/schemas/Error{status_code}"}
        made[str(status_code)] = {
            "description": _REASONS[status_code],
            "content": {wire.JSON: {"schema": schema}},
        }
        if status_code in {429, 503}:
            made[str(status_code)]["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return made


def schemas() -> Json:
    """The schemas that `paths` refers to."""
    _, found = msgspec.json.schema_components([*_STRUCTS, wire.Issue], ref_template="#/components/schemas/{name}")
    for schema in found.values():
        schema["additionalProperties"] = False
        for name, field in schema["properties"].items():
            field.pop("default", None)
            if name.endswith("At") or name in {"notBefore", "notAfter", "date"}:
                schema["properties"][name] = {**field, **(_INSTANT if "anyOf" not in field else {})}
    found["Issue"]["required"] = ["code", "path", "message"]
    for name in ("expected", "received"):
        found["Issue"]["properties"][name] = {"type": "string"}
    found.update({f"Error{status_code}": _error(status_code) for status_code in _REASONS})
    return {**found, **_requests()}


def _error(status_code: int) -> Json:
    issues = {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Issue"}}
    words = ["TokenError", wire.WORDS[403]] if status_code == 403 else [wire.WORDS[status_code]]
    schema: Json = {
        "type": "object",
        "properties": {
            "reqId": {"type": "string", "pattern": "^req-[0-9A-Za-z]{14}$"},
            "statusCode": {"const": status_code},
            "message": issues if status_code == 422 else {"type": "string", "minLength": 1},
            "error": {"enum": words},
        },
        "required": ["reqId", "statusCode", "message", "error"],
        "additionalProperties": False,
    }
    if status_code == 403:
        texts = {"type": "object", "additionalProperties": {"type": "string"}}
        schema["properties"]["details"] = {"type": "array", "items": texts}
    return schema


def _requests() -> Json:
    path_length = {"type": "integer", "minimum": -1, "maximum": authorities.MAX_PATH_LENGTH, "default": -1}
    friendly = {"type": "string", "maxLength": authorities.MAX_FRIENDLY_NAME}
    most = subjects.UPPER_BOUNDS

    def text(bound: int) -> Json:
        return {"type": "string", "maxLength": bound}

    name = {
        "commonName": text(most["common_name"]),
        "organization": text(most["organization"]),
        "ou": text(most["organizational_unit"]),
        "country": {"type": "string", "pattern": "^([A-Z]{2})?$"},
        "province": text(most["state"]),
        "locality": text(most["locality"]),
    }
    leaf = {
        "friendlyName": friendly,
        "commonName": text(most["common_name"]),
        "altNames": {"type": "string", "description": "Hosts, addresses, emails and URIs, separated by commas."},
        "ttl": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})? ?[smhdwy]$", "example": "90d"},
        "notBefore": _DATE,
        "notAfter": _DATE,
        "keyUsages": {"type": "array", "items": {"enum": [*pkix.KEY_USAGES]}},
        "extendedKeyUsages": {"type": "array", "items": {"enum": [*pkix.EXTENDED_KEY_USAGES]}},
    }
    lasting = {"anyOf": [{"required": ["ttl"]}, {"required": ["notAfter"]}]}
    ca_request = {
        "projectSlug": {"type": "string", "minLength": 1},
        "type": {"enum": [*CaType]},
        "friendlyName": friendly,
        **name,
        "notBefore": _DATE,
        "notAfter": _DATE,
        "maxPathLength": path_length,
        "keyAlgorithm": {"enum": [*ca.KEY_ALGORITHMS], "default": "RSA_2048"},
        "requireTemplateForIssuance": {"type": "boolean", "default": False},
    }
    intermediate = {"csr": _CSR, "notBefore": _DATE, "notAfter": _DATE, "maxPathLength": path_length}
    return {
        "CaRequest": _object(ca_request, "projectSlug", "type"),
        "CaChange": _object(
            {"status": {"enum": ["active", "disabled"]}, "requireTemplateForIssuance": {"type": "boolean"}}
        ),
        "IntermediateRequest": _object(intermediate, "csr", "notAfter"),
        "ImportRequest": _object({"certificate": _CSR, "certificateChain": _CSR}, "certificate", "certificateChain"),
        "Renewal": _object({"type": {"const": "existing"}, "notAfter": _DATE}, "type", "notAfter"),
        "LeafRequest": {**_object({"csr": _CSR, **leaf}, "csr"), **lasting},
        "LeafRequestOfCa": {**_object({"caId": _UUID, "csr": _CSR, **leaf}, "caId", "csr"), **lasting},
        "IssueRequest": {**_object(leaf, "commonName"), **lasting},
        "Revocation": _object({"revocationReason": {"enum": [*Reason.__members__]}}, "revocationReason"),
        "LoginRequest": _object(
            {"clientId": {"type": "string"}, "clientSecret": {"type": "string", "writeOnly": True}},
            "clientId",
            "clientSecret",
        ),
    }


def _object(properties: Json, *required: str) -> Json:
    nullable = {
        name: schema if name in required else {"anyOf": [schema, {"type": "null"}]}
        for name, schema in properties.items()
    }
    return {"type": "object", "properties": nullable, "required": list(required)}
