"""What `costs.py` sends to the newer calls: (route, what it is, body) of each."""

import json
from collections.abc import Iterator
from uuid import uuid4

NEWER = "/api/v1/cert-manager"
_ID = str(uuid4())
_LONG = json.dumps({"name": "a" * 500_000, "slug": "a" * 400_000}).encode()
_RULES = json.dumps({"name": "x", "sans": [{"type": "dns_name", "allowed": ["*.example.com"] * 10_000}]}).encode()
_ISSUE = json.dumps({"profileId": _ID, "attributes": {"commonName": "a" * 400_000}}).encode()


def cases() -> Iterator[tuple[str, str, bytes]]:
    """Long bodies, and ids of nothing."""
    application = f"{NEWER}/applications/{{application_id}}"
    pair, certificate = f"{application}/profiles/{{profile_id}}", f"{NEWER}/certificates/{{certificate_id}}"
    policies, profiles = f"{NEWER}/certificate-policies", f"{NEWER}/certificate-profiles"
    for path in (
        *(f"{NEWER}/applications", application, f"{NEWER}/applications/by-name/{{name}}", f"{application}/profiles"),
        *(f"{pair}/enrollment", f"{NEWER}/ca", f"{NEWER}/ca/internal/{{ca_id}}/certificate/{{cert_id}}"),
        *(policies, f"{policies}/{{policy_id}}", profiles, f"{profiles}/slug/{{slug}}", f"{profiles}/{{profile_id}}"),
        *(f"{NEWER}/certificates", f"{NEWER}/certificates/certificate-requests/{{certificate_id}}", certificate),
        *(f"{certificate}/bundle", f"{NEWER}/crl/{{crl_id}}/der", "/api/v1/pki/certificates/{serial_number}/bundle"),
        *("/api/v1/projects/slug/{slug}", "/client/v4/user"),
        "/client/v4/accounts/{account_id}/logs/audit/product_categories",
        "/client/v4/accounts/{account_id}/logs/audit/{entry_id}/history",
    ):
        yield f"GET {path}", "one", b""
    for path in (
        *(application, pair, f"{pair}/enrollment/api", f"{policies}/{{policy_id}}", f"{profiles}/{{profile_id}}"),
    ):
        yield f"DELETE {path}", "one that is not there", b""
    for method, path in (
        *(("POST", f"{NEWER}/applications"), ("PATCH", application), ("POST", f"{application}/profiles")),
        *(("POST", profiles), ("PATCH", f"{profiles}/{{profile_id}}"), ("PUT", f"{pair}/enrollment/api")),
        *(("POST", "/api/v1/auth/token/renew"), ("POST", "/api/v1/auth/token/revoke")),
        *(("POST", f"{NEWER}/ca/internal"), ("POST", f"{NEWER}/ca/internal/{{ca_id}}/certificate")),
    ):
        yield f"{method} {path}", "names of 900 kB", _LONG
    for route in (f"POST {policies}", f"PATCH {policies}/{{policy_id}}"):
        yield route, "rules of 10,000 patterns", _RULES
    for path in (
        *(f"{NEWER}/certificates", f"{certificate}/renew", f"{certificate}/revoke"),
        "/api/v1/pki/certificates/issue-certificate",
    ):
        yield f"POST {path}", "a common name of 400 kB", _ISSUE
