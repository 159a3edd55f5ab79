"""The OpenAPI paths of accounts, zones, tokens and the audit log (contract-cloudflare section 7)."""

from app.audit import log as audit_log
from app.cloudflare import accounts, envelope, logs, tokens, zones
from app.cloudflare import openapi_parts as parts
from app.cloudflare.openapi_parts import ID32, Json
from app.identity import accounts as core_accounts
from app.identity import policies
from app.identity import tokens as core_tokens
from app.identity.tokens import TokenStatus
from app.identity.zones import ORDERS, ZoneType
from app.store.paging import Direction

STRUCTS = (
    *(accounts.AccountObject, accounts.DeletedAccount, zones.ZoneObject, zones.DeletedZone, tokens.TokenObject),
    *(tokens.DeletedToken, tokens.PermissionGroup, logs.AuditEntry, logs.AuditInfo),
)
_INSTANT = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}
_FAILURES = (400, 403, 404, 429, 500, 503)
_WRITING = (400, 403, 404, 409, 413, 429, 500, 503)
_DIRECTION = {"enum": list(Direction)}
_NAME = {"type": "string", "minLength": 1}


def complete(schemas: Json) -> None:
    """Say of the Structs' schemas what their types cannot, and add what is asked for."""
    for name, fields in {
        "AccountObject": {"id": ID32, "created_on": _INSTANT, "type": {"const": accounts.TYPE}},
        "DeletedAccount": {"id": ID32},
        "ZoneObject": {"id": ID32, "created_on": _INSTANT, "modified_on": _INSTANT, "status": {"const": zones.STATUS}},
        "DeletedZone": {"id": ID32},
        "ZoneAccount": {"id": ID32},
        "TokenObject": {
            "id": ID32,
            **dict.fromkeys(("issued_on", "modified_on", "expires_on", "not_before"), _INSTANT),
            "policies": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Policy"}},
            "condition": {"$ref": "#/components/schemas/Condition"},
        },
        "DeletedToken": {"id": ID32},
        "PermissionGroup": {"id": ID32},
    }.items():
        schemas[name]["properties"].update(fields)
    for name in ("development_mode", "meta", "name_servers", "owner", "plan"):
        schemas["ZoneObject"]["required"].append(name)
    schemas["Policy"] = _policy()
    schemas["PolicyRequest"] = _policy_request()
    schemas["Condition"] = _condition()
    schemas["AccountRequest"] = _account_request()
    schemas["AccountChange"] = {**_account_request(), "properties": {**_account_request()["properties"], "id": ID32}}
    del schemas["AccountChange"]["properties"]["standalone"]
    schemas["ZoneRequest"] = _zone_request()
    schemas["ZoneChange"] = {
        "type": "object",
        "properties": {"paused": {"type": ["boolean", "null"]}, "type": {"enum": list(ZoneType)}},
    }
    schemas["TokenRequest"] = _token_request()
    change = _token_request()
    change["properties"]["status"] = {"enum": [TokenStatus.ACTIVE, TokenStatus.DISABLED]}
    schemas["TokenChange"] = change
    for name in ("AccountObject", "DeletedAccount", "ZoneObject", "DeletedZone", "TokenObject", "DeletedToken"):
        schemas[f"{name}Answer"] = parts.envelope({"$ref": f"#/components/schemas/{name}"})
    for name in ("AccountObject", "ZoneObject", "TokenObject", "PermissionGroup"):
        schemas[f"{name}ListAnswer"] = parts.listed(name)
    schemas["AuditEntryListAnswer"] = parts.listed("AuditEntry", "AuditInfo")
    schemas["TokenValueAnswer"] = parts.envelope({"type": "string", "description": "The new value, shown once."})


def _policy() -> Json:
    star = {"const": "*"}
    group = {
        "type": "object",
        "properties": {"id": ID32, "name": _TEXT},
        "required": ["id", "name"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "id": ID32,
            "effect": {"enum": ["allow", "deny"]},
            "resources": {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": {"anyOf": [star, {"type": "object", "additionalProperties": star}]},
                "description": "As it was sent.",
            },
            "permission_groups": {"type": "array", "minItems": 1, "items": group},
        },
        "required": ["id", "effect", "resources", "permission_groups"],
        "additionalProperties": False,
    }


def _policy_request() -> Json:
    made = _policy()
    groups = {**made["properties"]["permission_groups"], "maxItems": policies.MAX_GROUPS}
    groups["items"] = {"type": "object", "properties": {"id": ID32}, "required": ["id"]}
    properties = {**made["properties"], "permission_groups": groups}
    return {"type": "object", "properties": properties, "required": ["effect", "resources", "permission_groups"]}


def _condition() -> Json:
    networks = {"type": ["array", "null"], "items": _TEXT, "maxItems": policies.MAX_NETWORKS}
    lists = {"in": networks, "not_in": networks}
    request_ip = {"type": ["object", "null"], "properties": lists, "additionalProperties": False}
    return {"type": "object", "properties": {"request_ip": request_ip}, "additionalProperties": False}


def _account_request() -> Json:
    return {
        "type": "object",
        "properties": {
            "name": {**_NAME, "maxLength": core_accounts.MAX_NAME},
            "type": {"enum": [accounts.TYPE]},
            "standalone": {"const": True},
        },
        "required": ["name"],
    }


def _zone_request() -> Json:
    account = {"type": "object", "properties": {"id": ID32}, "required": ["id"]}
    return {
        "type": "object",
        "properties": {
            "account": account,
            "name": {**_NAME, "maxLength": 253, "description": "A hostname; unique in its account."},
            "type": {"enum": list(ZoneType), "default": ZoneType.FULL},
        },
        "required": ["account", "name"],
    }


def _token_request() -> Json:
    return {
        "type": "object",
        "properties": {
            "name": {**_NAME, "maxLength": core_tokens.MAX_NAME},
            "policies": {
                "type": "array",
                "minItems": 1,
                "maxItems": policies.MAX_POLICIES,
                "items": {"$ref": "#/components/schemas/PolicyRequest"},
            },
            "condition": {"$ref": "#/components/schemas/Condition"},
            "expires_on": _INSTANT,
            "not_before": _INSTANT,
        },
        "required": ["name", "policies"],
    }


def paths() -> Json:
    return {
        **_accounts(),
        **_zones(),
        **_tokens("Account", "/accounts/{account_id}/tokens", [parts.id_parameter("account")]),
        **_tokens("User", "/user/tokens", []),
        **_logs(),
    }


def _operation(name: str, summary: str, tag: str, answer: str, **more: object) -> Json:
    request = more.get("request")
    failures = _WRITING if request or more.get("writes") else _FAILURES
    query = more.get("query")
    made = parts.operation(name, summary, parts.query_parameters(query) if isinstance(query, dict) else [], tag)
    if more.get("once"):
        made["parameters"] = [*made["parameters"], parts.ONCE]
    if request:
        made["requestBody"] = parts.json_body(str(request))
    return {**made, "responses": parts.responses("200", answer, failures)}


def _accounts() -> Json:
    tag, answer = "Accounts", "AccountObjectAnswer"
    paging = parts.paging(accounts.PER_PAGE, accounts.MIN_PER_PAGE, accounts.MAX_PER_PAGE)
    query = {**paging, "name": _TEXT, "direction": _DIRECTION}
    return {
        "/accounts": {
            "post": _operation("createAccount", "Make an account", tag, answer, request="AccountRequest", once=True),
            "get": _operation("listAccounts", "List the accounts", tag, "AccountObjectListAnswer", query=query),
        },
        "/accounts/{account_id}": {
            "parameters": [parts.id_parameter("account")],
            "get": _operation("getAccount", "Get an account", tag, answer),
            "put": _operation("updateAccount", "Rename an account", tag, answer, request="AccountChange"),
            "delete": _operation("deleteAccount", "Delete an empty account", tag, "DeletedAccountAnswer", writes=True),
        },
    }


def _zones() -> Json:
    tag, answer = "Zones", "ZoneObjectAnswer"
    query = {
        **parts.paging(zones.PER_PAGE, zones.MIN_PER_PAGE, zones.MAX_PER_PAGE),
        "name": _TEXT,
        "account.id": ID32,
        "account.name": _TEXT,
        "type": _TEXT,
        "direction": _DIRECTION,
        "status": {"enum": list(zones.STATUSES)},
        "order": {"enum": list(ORDERS)},
        "match": {"enum": ["all"]},
    }
    return {
        "/zones": {
            "post": _operation("createZone", "Make a zone", tag, answer, request="ZoneRequest", once=True),
            "get": _operation("listZones", "List the zones", tag, "ZoneObjectListAnswer", query=query),
        },
        "/zones/{zone_id}": {
            "parameters": [parts.id_parameter("zone")],
            "get": _operation("getZone", "Get a zone", tag, answer),
            "patch": _operation("editZone", "Change a zone", tag, answer, request="ZoneChange"),
            "delete": _operation("deleteZone", "Delete an empty zone", tag, "DeletedZoneAnswer", writes=True),
        },
    }


def _tokens(owner: str, path: str, parameters: list[Json]) -> Json:
    tag, answer, one = "Tokens", "TokenObjectAnswer", f"{path}/{{token_id}}"
    token_id = {"name": "token_id", "in": "path", "required": True, "schema": ID32}
    paging = parts.paging(tokens.PER_PAGE, tokens.MIN_PER_PAGE, tokens.MAX_PER_PAGE)
    query = {**paging, "direction": _DIRECTION, "include_expired": {"enum": ["true", "false"]}}
    roll = _operation(f"roll{owner}Token", "Give a token a new value", tag, "TokenValueAnswer", writes=True)
    roll["requestBody"] = {"required": False, "content": {envelope.JSON: {"schema": {"type": "object"}}}}
    groups = {"name": _TEXT, "scope": _TEXT}
    return {
        path: {
            "parameters": parameters,
            "post": _operation(
                f"create{owner}Token",
                "Make a token; its value is shown once",
                tag,
                answer,
                request="TokenRequest",
                once=True,
            ),
            "get": _operation(f"list{owner}Tokens", "List the tokens", tag, "TokenObjectListAnswer", query=query),
        },
        f"{path}/permission_groups": {
            "parameters": parameters,
            "get": _operation(
                f"list{owner}PermissionGroups", "List the groups", tag, "PermissionGroupListAnswer", query=groups
            ),
        },
        one: {
            "parameters": [*parameters, token_id],
            "get": _operation(f"get{owner}Token", "Get a token", tag, answer),
            "put": _operation(f"update{owner}Token", "Replace a token", tag, answer, request="TokenChange"),
            "delete": _operation(f"delete{owner}Token", "Revoke a token", tag, "DeletedTokenAnswer", writes=True),
        },
        f"{one}/value": {"parameters": [*parameters, token_id], "put": roll},
    }


def _logs() -> Json:
    moment = {"type": "string", "format": "date-time"}
    query: Json = {
        "since": moment,
        "before": moment,
        "limit": {"type": "integer", "minimum": 1, "maximum": audit_log.MAX_LIMIT, "default": logs.LIMIT},
        "cursor": _TEXT,
        "direction": {**_DIRECTION, "default": Direction.DESC},
        **{
            f"{name}{suffix}": {"type": "array", "items": _TEXT}
            for name in sorted(logs.FILTERS)
            for suffix in ("", ".not")
        },
    }
    listed = _operation("listAuditLog", "Read the audit log", "Audit log", "AuditEntryListAnswer", query=query)
    for parameter in listed["parameters"]:
        parameter["required"] = parameter["name"] in {"since", "before"}
    return {"/accounts/{account_id}/logs/audit": {"parameters": [parts.id_parameter("account")], "get": listed}}
