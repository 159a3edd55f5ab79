"""The OpenAPI 3.1 document of what is served; the answers' schemas come from the Structs that encode them."""

import msgspec

from app import __version__
from app.certificates import matching
from app.certificates.model import BundleMethod, Status
from app.cloudflare import custom_certificates, custom_csrs, envelope, openapi_tenants, tokens
from app.cloudflare import openapi_parts as parts
from app.cloudflare.openapi_parts import Json
from app.csrs import store as csrs
from app.csrs.model import Order
from app.store import paging
from app.store.paging import Direction
from app.x509.keys import KeyType

_EXAMPLE = {
    "common_name": "example.com",
    "country": "US",
    "state": "California",
    "locality": "San Francisco",
    "organization": "Cloudflare, Inc.",
    "organizational_unit": "Engineering",
    "name": "My Custom CSR",
    "description": "CSR for example.com wildcard",
    "sans": ["example.com", "www.example.com"],
    "key_type": "p256v1",
}
_CSR_EXAMPLE = {
    **_EXAMPLE,
    "id": "7b163417-1d2b-4c84-a38a-2fb7a0cd7752",
    "created_at": "2026-01-15T10:30:00.000000Z",
    "account_tag": "023e105f4ecef8ad9ca31a8372d0c353",
    "csr": "-----BEGIN CERTIFICATE REQUEST-----\n…\n-----END CERTIFICATE REQUEST-----\n",
}


def document(public_url: str) -> Json:
    """The whole document; `public_url` is where the clients reach this server."""
    paths: Json = {}
    for level in ("account", "zone"):
        paths.update(_csr_paths(level))
    paths.update(_certificate_paths())
    paths.update(openapi_tenants.paths())
    paths["/user/tokens/verify"] = {"get": _verify("verifyUserToken", [])}
    paths["/accounts/{account_id}/tokens/verify"] = {
        "get": _verify("verifyAccountToken", [parts.id_parameter("account")])
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Keystead",
            "version": __version__,
            "description": "Key pairs and CSRs in Cloudflare's v4 dialect, private CAs in Infisical's.",
        },
        # The relative one first, so that the page can be tried by whatever name it was opened.
        "servers": [{"url": "/client/v4"}, {"url": f"{public_url}/client/v4"}],
        "security": [{"api_token": []}, {"api_email": [], "api_key": []}],
        "paths": paths,
        "components": {"securitySchemes": _SCHEMES, "schemas": _schemas(), "headers": parts.HEADERS},
    }


_SCHEMES = {
    "api_token": {"type": "http", "scheme": "bearer"},
    "api_email": {"type": "apiKey", "in": "header", "name": "X-Auth-Email"},
    "api_key": {"type": "apiKey", "in": "header", "name": "X-Auth-Key"},
}


def _schemas() -> Json:
    _, schemas = msgspec.json.schema_components(
        [
            *(envelope.Item, envelope.Failure, envelope.ResultInfo, custom_csrs.CustomCsr, custom_csrs.Deleted),
            *(custom_certificates.CustomCertificate, custom_certificates.DeletedCertificate, tokens.Verified),
            *openapi_tenants.STRUCTS,
        ],
        ref_template="#/components/schemas/{name}",
    )
    for schema in schemas.values():
        if "properties" in schema:
            schema["additionalProperties"] = False
            parts.without_defaults(schema)
    schemas["Failure"]["properties"]["errors"]["minItems"] = 1
    schemas["Failure"]["properties"]["success"] = {"const": False}
    schemas["Item"]["properties"]["code"]["minimum"] = 971
    csr = schemas["CustomCsr"]["properties"]
    csr.update(id=parts.UUID, created_at={"type": "string", "format": "date-time"}, account_tag=parts.ID32)
    csr["key_type"] = {"enum": list(KeyType)}
    certificate = schemas["CustomCertificate"]["properties"]
    instant = {"type": "string", "format": "date-time"}
    certificate.update(id=parts.UUID, zone_id=parts.ID32, custom_csr_id=parts.UUID, status={"enum": list(Status)})
    certificate.update(uploaded_on=instant, modified_on=instant, expires_on=instant)
    schemas["CustomCsrRequest"] = _request_schema()
    schemas["CustomCertificateRequest"] = {**_certificate_schema(), "required": ["certificate"]}
    schemas["CustomCertificateChange"] = _certificate_schema()
    schemas["Priorities"] = _priorities_schema()
    for name in ("CustomCsr", "Deleted", "CustomCertificate", "DeletedCertificate", "Verified"):
        schemas[f"{name}Answer"] = parts.envelope({"$ref": f"#/components/schemas/{name}"})
    for name in ("CustomCsr", "CustomCertificate"):
        schemas[f"{name}ListAnswer"] = parts.listed(name)
    certificates = {"type": "array", "items": {"$ref": "#/components/schemas/CustomCertificate"}}
    schemas["CustomCertificatesAnswer"] = parts.envelope(certificates)
    openapi_tenants.complete(schemas)
    return schemas


def _certificate_schema() -> Json:
    nullable = {"type": ["string", "null"]}
    return {
        "type": "object",
        "properties": {
            "certificate": {"type": "string", "minLength": 1, "description": "PEM: the leaf and what is above it."},
            "private_key": {
                **nullable,
                "description": "PEM, unencrypted; only without custom_csr_id.",
                "writeOnly": True,
            },
            "custom_csr_id": {**parts.UUID, "description": "The CSR whose key it is, of this zone or its account."},
            "bundle_method": {"enum": list(BundleMethod), "default": BundleMethod.UBIQUITOUS},
            "type": {"enum": list(matching.TYPES), "default": matching.TYPES[0]},
            "deploy": {"enum": [*matching.DEPLOYS, None]},
            "policy": {**nullable, "maxLength": matching.MAX_POLICY},
            "geo_restrictions": {
                "type": ["object", "null"],
                "properties": {"label": {"enum": list(matching.GEO_LABELS)}},
            },
        },
    }


def _priorities_schema() -> Json:
    priority = {"type": "integer", "minimum": 0, "maximum": matching.MAX_PRIORITY}
    entry = {"type": "object", "properties": {"id": parts.UUID, "priority": priority}, "required": ["id", "priority"]}
    items = {"type": "array", "items": entry, "maxItems": custom_certificates.MAX_PRIORITIES}
    return {"type": "object", "properties": {"certificates": items}, "required": ["certificates"]}


def _request_schema() -> Json:
    def text(most: int, description: str) -> Json:
        return {"type": "string", "minLength": 1, "maxLength": most, "description": description}

    def optional(most: int, description: str) -> Json:
        return {"type": ["string", "null"], "maxLength": most, "description": description}

    most = csrs.MAX_LENGTHS
    names = {
        "type": "array",
        "minItems": 1,
        "maxItems": csrs.MAX_SANS,
        "items": {"type": "string", "minLength": 1, "maxLength": 255},
        "description": "Hostnames, in ASCII; a leading *. is a wildcard.",
    }
    return {
        "type": "object",
        "properties": {
            "common_name": text(csrs.MAX_LENGTHS["common_name"], "The common name; clients only look at the SANs."),
            "country": {"type": "string", "pattern": "^[A-Z]{2}$", "description": "ISO 3166-1 alpha-2, or XX."},
            "state": text(most["state"], "State or province."),
            "locality": text(most["locality"], "City or locality."),
            "organization": text(most["organization"], "Organization."),
            "organizational_unit": optional(most["organizational_unit"], "Public CAs no longer certify it."),
            "name": optional(most["name"], "A name for people; not in the CSR."),
            "description": optional(most["description"], "A text for people; not in the CSR."),
            "sans": names,
            "key_type": {"enum": [*KeyType, "", None], "default": KeyType.RSA2048},
        },
        "required": ["common_name", "country", "state", "locality", "organization", "sans"],
        "example": _EXAMPLE,
    }


def _query_parameters(per_page: int) -> list[Json]:
    bounds = {"minimum": custom_csrs.MIN_PER_PAGE, "maximum": custom_csrs.MAX_PER_PAGE, "default": per_page}
    schemas: dict[str, Json] = {
        "page": {"type": "integer", "minimum": 1, "maximum": paging.MAX_PAGE, "default": 1},
        "per_page": {"type": "integer", **bounds},
        "order": {"enum": list(Order), "default": Order.CREATED_AT},
        "direction": {"enum": list(Direction), "default": Direction.ASC},
        "common_name": {"type": "string"},
        "san": {"type": "string"},
        "name": {"type": "string"},
        "key_type": {"enum": list(KeyType)},
    }
    return [{"name": name, "in": "query", "schema": schema} for name, schema in schemas.items()]


def _csr_paths(level: str) -> Json:
    title, one = level.capitalize(), f"/{level}s/{{{level}_id}}/custom_csrs/{{custom_csr_id}}"
    csr_id = {"name": "custom_csr_id", "in": "path", "required": True, "schema": parts.UUID}
    body = {"required": True, "content": {envelope.JSON: {"schema": {"$ref": "#/components/schemas/CustomCsrRequest"}}}}
    create = {
        **parts.operation(f"create{title}CustomCsr", "Make a key pair and its CSR", [parts.ONCE]),
        "requestBody": body,
        "responses": parts.responses(
            "201", "CustomCsrAnswer", (400, 403, 409, 413, 429, 500, 503), files=True, example=_CSR_EXAMPLE
        ),
    }
    list_ = {
        **parts.operation(
            f"list{title}CustomCsrs", "List the CSRs", _query_parameters(50 if level == "account" else 20)
        ),
        "responses": parts.responses("200", "CustomCsrListAnswer", (400, 403, 429, 500, 503)),
    }
    get = {
        **parts.operation(f"get{title}CustomCsr", "Get a CSR", []),
        "responses": parts.responses(
            "200", "CustomCsrAnswer", (400, 403, 404, 429, 500, 503), files=True, example=_CSR_EXAMPLE
        ),
    }
    delete = {
        **parts.operation(f"delete{title}CustomCsr", "Delete a CSR and destroy its private key", []),
        "responses": parts.responses("200", "DeletedAnswer", (400, 403, 404, 409, 429, 500, 503)),
    }
    return {
        one.removesuffix("/{custom_csr_id}"): {"parameters": [parts.id_parameter(level)], "post": create, "get": list_},
        one: {"parameters": [parts.id_parameter(level), csr_id], "get": get, "delete": delete},
    }


def _certificate_paths() -> Json:
    zone, failures = [parts.id_parameter("zone")], (400, 403, 404, 413, 429, 500, 503)
    certificate_id = {"name": "custom_certificate_id", "in": "path", "required": True, "schema": parts.UUID}
    bounds = {"minimum": custom_certificates.MIN_PER_PAGE, "maximum": custom_certificates.MAX_PER_PAGE}
    query: dict[str, Json] = {
        "page": {"type": "integer", "minimum": 1, "maximum": paging.MAX_PAGE, "default": 1},
        "per_page": {"type": "integer", **bounds, "default": custom_certificates.PER_PAGE},
        "match": {"enum": ["any", "all"], "default": "all"},
        "status": {"enum": list(Status)},
    }
    parameters = [{"name": name, "in": "query", "schema": schema} for name, schema in query.items()]

    def operation(name: str, summary: str, answer: str, request: str = "") -> Json:
        made = {**parts.operation(name, summary, []), "tags": ["Custom certificates"]}
        if request:
            schema = {"$ref": f"#/components/schemas/{request}"}
            made["requestBody"] = {"required": True, "content": {envelope.JSON: {"schema": schema}}}
        return {**made, "responses": parts.responses("200", answer, failures)}

    listed = operation("listZoneCustomCertificates", "List the certificates", "CustomCertificateListAnswer")
    one = "CustomCertificateAnswer"
    return {
        "/zones/{zone_id}/custom_certificates": {
            "parameters": zone,
            "post": operation(
                "createZoneCustomCertificate", "Take a certificate back", one, "CustomCertificateRequest"
            ),
            "get": {**listed, "parameters": parameters},
        },
        "/zones/{zone_id}/custom_certificates/{custom_certificate_id}": {
            "parameters": [*zone, certificate_id],
            "get": operation("getZoneCustomCertificate", "Get a certificate", one),
            "patch": operation(
                "editZoneCustomCertificate", "Renew or change it; the id stays", one, "CustomCertificateChange"
            ),
            "delete": operation("deleteZoneCustomCertificate", "Delete a certificate", "DeletedCertificateAnswer"),
        },
        "/zones/{zone_id}/custom_certificates/prioritize": {
            "parameters": zone,
            "put": operation(
                "prioritizeZoneCustomCertificates", "Set priorities", "CustomCertificatesAnswer", "Priorities"
            ),
        },
    }


def _verify(operation_id: str, parameters: list[Json]) -> Json:
    return {
        **parts.operation(operation_id, "Say what a token is", parameters),
        "tags": ["Tokens"],
        "security": [{"api_token": []}],
        "responses": parts.responses("200", "VerifiedAnswer", (400, 401, 403, 404, 429, 500, 503)),
    }
