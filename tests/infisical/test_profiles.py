"""Certificates by profile: what a policy allows is issued, and nothing else (contract-infisical, "Profiles")."""

from typing import Any
from uuid import uuid4

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from support.authority import Key
from support.pki import by_openssl, common_name, days_pass, names, request, signed
from support.world import World, make_token

from keystead.caller import GROUPS, Area

API = "/api/v1/cert-manager"
CERTIFICATES = f"{API}/certificates"
HOST = "www.example.com"
KEY = ec.generate_private_key(ec.SECP256R1())
Json = dict[str, Any]
RULES: Json = {
    "subject": [{"type": "common_name", "allowed": ["*.example.com"]}],
    "sans": [
        {"type": "dns_name", "allowed": ["*.example.com"], "denied": ["secret.example.com"]},
        {"type": "ip_address", "allowed": ["10.0.0.0/8"]},
    ],
    "keyUsages": {"allowed": ["digital_signature", "key_encipherment"]},
    "extendedKeyUsages": {"allowed": ["client_auth"], "required": ["server_auth"], "denied": ["code_signing"]},
    "algorithms": {"signature": ["SHA256-ECDSA"], "keyAlgorithm": ["ECDSA-P256", "RSA-2048"]},
    "validity": {"max": "30d"},
    "basicConstraints": {"isCA": "denied"},
}


@pytest.fixture(scope="module")
async def world(shared_world: World) -> World:
    """With a token that may have keys made, which none has by default."""
    groups = tuple(group.name for group in GROUPS if group.area is Area.PRIVATE_CA)
    shared_world.a.token = await make_token(shared_world.services, shared_world.a.account, groups=groups)
    return shared_world


def csr_of(key: Key) -> str:
    return request(key, common_name(HOST), names(x509.DNSName(HOST)))


async def ask(world: World, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
    answer = await world.http.request(method, path, json=body, headers={**world.a.bearer, **headers})
    # The answers whose work it is to hand out a key; in all others the world looks for one.
    if method == "POST" and path.endswith(("/certificates", "/renew")):
        world.seen.pop()
    return answer


async def told(world: World, method: str, path: str, body: Json | None = None) -> Any:
    answer = await ask(world, method, path, body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def root(world: World) -> str:
    configuration = {"type": "root", "commonName": "Root", "keyAlgorithm": "EC_prime256v1"}
    body = {"name": f"root-{uuid4().hex[:8]}", "status": "active", "configuration": configuration}
    made: str = (await told(world, "POST", f"{API}/ca/internal", body))["id"]
    return made


async def policy(world: World, **rules: Any) -> str:
    body = {"name": f"p-{uuid4().hex[:8]}", **rules}
    made: str = (await told(world, "POST", f"{API}/certificate-policies", body))["certificatePolicy"]["id"]
    return made


async def profile(world: World, rules: Json, **fields: Any) -> Json:
    ids = {"caId": await root(world), "certificatePolicyId": await policy(world, **rules)}
    body = {"slug": f"s-{uuid4().hex[:8]}", **ids, **fields}
    made: Json = (await told(world, "POST", f"{API}/certificate-profiles", body))["certificateProfile"]
    return made


def wanted(**changes: Any) -> Json:
    return {"commonName": HOST, "ttl": "1d", **changes}


async def test_a_rule_that_nobody_would_keep_is_422_and_stores_nothing(world: World) -> None:
    """Unknown members, types, usages, patterns that match nothing, and a CA for the asking: told with their places."""
    count = "SELECT count(*) AS n FROM certificate_policies"
    before = await world.database.fetchrow(count)
    cases: dict[str, Json] = {
        "an unknown member": {"subjects": []},
        "an unknown member of a rule": {"sans": [{"type": "dns_name", "allow": ["*"]}]},
        "an unknown member of usages": {"keyUsages": {"forbidden": []}},
        "an unknown member of validity": {"validity": {"maximum": "1d"}},
        "an unknown type": {"sans": [{"type": "registered_id"}]},
        "an unknown usage": {"keyUsages": {"allowed": ["digitalSignature"]}},
        "an unknown algorithm": {"algorithms": {"keyAlgorithm": ["ED25519"]}},
        "a type twice": {"sans": [{"type": "dns_name"}, {"type": "dns_name", "denied": ["*"]}]},
        "a wildcard within": {"sans": [{"type": "dns_name", "denied": ["a.*.example.com"]}]},
        "a network that is none": {"sans": [{"type": "ip_address", "denied": ["10.0.0.1/8"]}]},
        "no e-mail": {"sans": [{"type": "email", "denied": ["example.com"]}]},
        "an open end": {"sans": [{"type": "uri", "allowed": ["https://example.*"]}]},
        "a span that is none": {"validity": {"max": "soon"}},
        "a number for a span": {"validity": {"max": 30}},
        "a CA": {"basicConstraints": {"isCA": "allowed"}},
        "a true CA": {"basicConstraints": {"isCA": True}},
        "a text for rules": {"sans": "dns_name"},
    }
    for case, rules in cases.items():
        answer = await ask(world, "POST", f"{API}/certificate-policies", {"name": "p", **rules})
        assert answer.status_code == 422, (case, answer.text)
    assert await world.database.fetchrow(count) == before


async def test_what_was_sent_of_a_policy_comes_back_and_null_takes_a_rule_away(world: World) -> None:
    """As Terraform writes policies: create, read, change with nulls, delete; a name twice is 400."""
    sent = {"name": f"p-{uuid4().hex[:8]}", "description": "For servers", **RULES}
    made = (await told(world, "POST", f"{API}/certificate-policies", sent))["certificatePolicy"]
    assert sent.items() <= made.items()
    one = f"{API}/certificate-policies/{made['id']}"
    assert (await told(world, "GET", one))["certificatePolicy"] == made
    assert (await ask(world, "POST", f"{API}/certificate-policies", sent)).status_code == 400
    changed = {"name": sent["name"], "description": "", "subject": None, "sans": RULES["sans"], "keyUsages": None}
    read = (await told(world, "PATCH", one, changed))["certificatePolicy"]
    assert "subject" not in read
    assert "keyUsages" not in read
    assert (read["description"], read["sans"], read["validity"]) == (None, RULES["sans"], RULES["validity"])
    assert (await ask(world, "PATCH", one, {"rules": []})).status_code == 422
    listed = await told(world, "GET", f"{API}/certificate-policies")
    assert read in listed["certificatePolicies"]
    await told(world, "DELETE", one)
    assert (await ask(world, "GET", one)).status_code == 404


async def test_a_policy_refuses_with_its_rule_and_the_value(world: World) -> None:
    """Each rule by one request that breaks it alone, for a key that is made here and for a CSR; nothing is signed."""
    by = {"profileId": (await profile(world, RULES))["id"]}
    count = "SELECT count(*) AS n FROM issued_certificates"
    before = await world.database.fetchrow(count)
    dns, address = "dns_name", "ip_address"
    cases: list[tuple[Json, str, str]] = [
        (wanted(commonName="www.example.org"), "subject.allowed", "www.example.org"),
        (wanted(commonName="example.com"), "subject.allowed", "example.com"),
        (wanted(organization="Example"), "subject", "Example"),
        (wanted(altNames=[{"type": dns, "value": "secret.example.com"}]), "sans.denied", "secret.example.com"),
        (wanted(altNames=[{"type": dns, "value": "SECRET.example.com"}]), "sans.denied", "SECRET.example.com"),
        (wanted(altNames=[{"type": dns, "value": "*.example.com"}]), "sans.denied", "*.example.com"),
        (wanted(altNames=[{"type": dns, "value": "evil-example.com"}]), "sans.allowed", "evil-example.com"),
        (wanted(altNames=[{"type": address, "value": "11.0.0.1"}]), "sans.allowed", "11.0.0.1"),
        (wanted(altNames=[{"type": address, "value": "::1"}]), "sans.allowed", "::1"),
        (wanted(altNames=[{"type": "email", "value": "a@example.com"}]), "sans", "a@example.com"),
        (wanted(keyUsages=["non_repudiation"]), "keyUsages.allowed", "non_repudiation"),
        (wanted(extendedKeyUsages=["client_auth"]), "extendedKeyUsages.required", "server_auth"),
        (wanted(extendedKeyUsages=["server_auth", "code_signing"]), "extendedKeyUsages.denied", "code_signing"),
        (wanted(ttl="31d"), "validity.max", "30d"),
    ]
    only_keys = (wanted(keyAlgorithm="RSA_4096"), "algorithms.keyAlgorithm", "RSA-4096")
    for asked, rule, value in (*cases, only_keys):
        answer = await ask(world, "POST", CERTIFICATES, {**by, "attributes": asked})
        text = answer.json()["message"]
        assert (answer.status_code, rule in text, value in text) == (400, True, True), (asked, text)
    for asked, rule, value in cases[3:]:
        answer = await ask(world, "POST", CERTIFICATES, {**by, "csr": csr_of(KEY), "attributes": asked})
        text = answer.json()["message"]
        assert (answer.status_code, rule in text, value in text) == (400, True, True), (asked, text)
    long = csr_of(rsa.generate_private_key(65537, 3072))
    answer = await ask(world, "POST", CERTIFICATES, {**by, "csr": long, "attributes": {"ttl": "1d"}})
    assert (answer.status_code, "RSA-3072" in answer.text) == (400, True)
    assert await world.database.fetchrow(count) == before


async def test_a_request_that_contradicts_itself_or_names_nothing_is_refused(world: World) -> None:
    """Unknown attributes and words are 422, a wrong type or a wish that cannot be met 400, what is not there 404."""
    by = {"profileId": (await profile(world, {}))["id"]}
    cases: list[tuple[Json, int]] = [
        ({**by, "attributes": wanted(domainComponents=["a"])}, 422),
        ({**by, "attributes": wanted(keyUsages=["digitalSignature"])}, 422),
        ({**by, "attributes": wanted(keyAlgorithm="ed25519")}, 422),
        ({**by, "attributes": wanted(ttl="soon")}, 422),
        ({**by, "attributes": wanted(altNames=[{"type": "dns_name", "value": "10.0.0.1"}])}, 400),
        ({**by, "attributes": wanted(signatureAlgorithm="SHA256-RSA")}, 400),
        ({**by, "csr": csr_of(KEY), "attributes": {"keyAlgorithm": "RSA_2048"}}, 400),
        ({**by, "csr": "x"}, 400),
        ({**by, "attributes": {}}, 400),
        ({**by, "applicationId": str(uuid4()), "attributes": wanted()}, 404),
        ({**by, "applicationId": "x", "attributes": wanted()}, 404),
        ({"profileId": str(uuid4()), "attributes": wanted()}, 404),
        ({"profileId": "x", "attributes": wanted()}, 404),
        ({"attributes": wanted()}, 422),
    ]
    for body, status in cases:
        answer = await ask(world, "POST", CERTIFICATES, body)
        assert answer.status_code == status, (body, answer.text)


async def test_what_a_policy_allows_is_issued_and_its_defaults_fill_the_rest(world: World) -> None:
    """A key is made here and returned once, within the rules; openssl believes the chain; the CA signs no other way."""
    defaults = {
        "ttlDays": 7,
        "commonName": HOST,
        "keyUsages": ["digital_signature"],
        "extendedKeyUsages": ["server_auth"],
    }
    made = await profile(world, RULES, defaults=defaults)
    assert made["defaults"] == defaults
    ca = f"{API}/ca/internal/{made['caId']}"
    await told(world, "PATCH", ca, {"enableDirectIssuance": False})
    answer = await told(world, "POST", CERTIFICATES, {"profileId": made["id"]})
    issued = answer["certificate"]
    assert answer["status"] == "issued"
    assert "PRIVATE KEY" in issued["privateKey"]
    verdict, text = by_openssl(signed(issued))
    assert verdict, text
    leaf = x509.load_pem_x509_certificate(issued["certificate"].encode())
    assert (leaf.not_valid_after_utc - leaf.not_valid_before_utc).days == 7
    direct = {"caId": made["caId"], "csr": csr_of(KEY), "ttl": "1d"}
    assert (await ask(world, "POST", "/api/v1/pki/certificates/sign-certificate", direct)).status_code == 400
    detail = (await told(world, "GET", f"{CERTIFICATES}/{issued['certificateId']}"))["certificate"]
    assert (detail["status"], detail["profileId"]) == ("active", made["id"])
    assert (detail["keyUsages"], detail["extendedKeyUsages"]) == (["digital_signature"], ["server_auth"])
    request = await told(world, "GET", f"{CERTIFICATES}/certificate-requests/{answer['certificateRequestId']}")
    assert (request["status"], request["certificate"], request["privateKey"]) == ("issued", issued["certificate"], None)
    assert (await ask(world, "DELETE", ca)).status_code == 400


async def test_keys_are_made_for_those_who_may_have_them_made(world: World) -> None:
    """Private CA Sign is enough with a CSR, and to renew for its key; without one, Private CA Issue Key is needed."""
    by = {"profileId": (await profile(world, {}))["id"]}
    made = await told(world, "POST", CERTIFICATES, {**by, "attributes": wanted()})
    token = await make_token(world.services, world.a.account, groups=("Private CA Sign",))
    headers = {"Authorization": f"Bearer {token}"}
    body = {**by, "csr": csr_of(KEY), "attributes": {"ttl": "1d"}}
    answer = await ask(world, "POST", CERTIFICATES, body, **headers)
    assert answer.status_code == 200, answer.text
    assert "privateKey" not in answer.json()["certificate"]
    own = answer.json()["certificate"]["certificateId"]
    renewed = await ask(world, "POST", f"{CERTIFICATES}/{own}/renew", {}, **headers)
    assert renewed.status_code == 200, renewed.text
    leaf = x509.load_pem_x509_certificate(renewed.json()["certificate"].encode())
    assert leaf.public_key() == KEY.public_key()
    assert (await ask(world, "POST", CERTIFICATES, {**by, "attributes": wanted()}, **headers)).status_code == 403
    other = made["certificate"]["certificateId"]
    assert (await ask(world, "POST", f"{CERTIFICATES}/{other}/renew", {}, **headers)).status_code == 403


async def test_a_renewal_keeps_to_what_the_policy_says_now(world: World) -> None:
    """A policy that was narrowed since refuses; a revoked certificate, and one of no profile, are not renewed."""
    made = await profile(world, {})
    first = (await told(world, "POST", CERTIFICATES, {"profileId": made["id"], "attributes": wanted(ttl="10d")}))[
        "certificate"
    ]
    renew = f"{CERTIFICATES}/{first['certificateId']}/renew"
    again = await told(world, "POST", renew, {})
    assert again["certificateRequestId"] == ""
    assert again["privateKey"] != first["privateKey"]
    rules = f"{API}/certificate-policies/{made['certificatePolicyId']}"
    await told(world, "PATCH", rules, {"validity": {"max": "9d"}})
    answer = await ask(world, "POST", renew, {})
    assert (answer.status_code, "validity.max" in answer.text) == (400, True)
    await told(world, "PATCH", rules, {"validity": None})
    await told(world, "POST", f"{CERTIFICATES}/{first['certificateId']}/revoke", {"revocationReason": "SUPERSEDED"})
    assert (await ask(world, "POST", renew, {})).status_code == 400
    direct = {"caId": made["caId"], "csr": csr_of(KEY), "ttl": "1d"}
    serial = (await told(world, "POST", "/api/v1/pki/certificates/sign-certificate", direct))["serialNumber"]
    (found,) = (await told(world, "GET", f"{CERTIFICATES}?serialNumber={serial}"))["certificates"]
    assert (await ask(world, "POST", f"{CERTIFICATES}/{found['id']}/renew", {})).status_code == 400


async def test_an_application_uses_the_profiles_that_are_attached_and_enrolled(world: World) -> None:
    """Terraform's sequence: attach, enroll, read, withdraw, detach; what is switched off issues nothing."""
    made = await profile(world, {})
    name = f"app-{uuid4().hex[:8]}"
    application = (await told(world, "POST", f"{API}/applications", {"name": name}))["application"]
    one = f"{API}/applications/{application['id']}"
    assert (await told(world, "GET", f"{API}/applications/by-name/{name}"))["application"] == application
    body = {"profileId": made["id"], "applicationId": application["id"], "attributes": wanted()}
    assert (await ask(world, "POST", CERTIFICATES, body)).status_code == 404
    (link,) = (await told(world, "POST", f"{one}/profiles", {"profileIds": [made["id"]]}))["profiles"]
    assert (link["profileSlug"], link["applicationId"]) == (made["slug"], application["id"])
    assert link["apiConfigId"]
    enrollment = f"{one}/profiles/{made['id']}/enrollment"
    put = await told(world, "PUT", f"{enrollment}/api", {"autoRenew": True, "renewBeforeDays": 5})
    assert (put["api"]["autoRenew"], put["api"]["renewBeforeDays"]) == (True, 5)
    assert await told(world, "GET", enrollment) == put
    await told(world, "POST", CERTIFICATES, body)
    await told(world, "DELETE", f"{enrollment}/api")
    assert (await told(world, "GET", enrollment))["api"] is None
    assert (await ask(world, "POST", CERTIFICATES, body)).status_code == 400
    await told(world, "DELETE", f"{one}/profiles/{made['id']}")
    assert (await told(world, "GET", f"{one}/profiles"))["profiles"] == []
    assert (await told(world, "PATCH", one, {"description": "x"}))["application"]["description"] == "x"
    assert (await ask(world, "POST", f"{one}/profiles", {"profileIds": ["x"]})).status_code == 404
    await told(world, "DELETE", one)
    assert (await ask(world, "GET", one)).status_code == 404


async def test_nothing_of_another_account_is_seen_used_or_changed(world: World) -> None:
    """Policies, profiles, applications and certificates of A are not there for B, nor can B's profile name them."""
    made = await profile(world, {})
    issued = await told(world, "POST", CERTIFICATES, {"profileId": made["id"], "attributes": wanted()})
    application = (await told(world, "POST", f"{API}/applications", {"name": f"a-{uuid4().hex[:8]}"}))["application"]
    groups = tuple(group.name for group in GROUPS if group.area is Area.PRIVATE_CA)
    token = await make_token(world.services, world.b.account, groups=groups)
    theirs = {"Authorization": f"Bearer {token}"}
    certificate = f"{CERTIFICATES}/{issued['certificate']['certificateId']}"
    new = {"slug": "x", "caId": made["caId"], "certificatePolicyId": made["certificatePolicyId"]}
    calls: list[tuple[str, str, Json | None]] = [
        ("GET", f"{API}/certificate-policies/{made['certificatePolicyId']}", None),
        ("PATCH", f"{API}/certificate-profiles/{made['id']}", {}),
        ("DELETE", f"{API}/certificate-profiles/{made['id']}", None),
        ("GET", f"{API}/certificate-profiles/slug/{made['slug']}", None),
        ("GET", f"{API}/applications/{application['id']}/profiles", None),
        ("GET", certificate, None),
        ("GET", f"{certificate}/bundle", None),
        ("POST", f"{certificate}/renew", {}),
        ("POST", f"{certificate}/revoke", {"revocationReason": "UNSPECIFIED"}),
        ("POST", CERTIFICATES, {"profileId": made["id"], "attributes": wanted()}),
        ("POST", f"{API}/certificate-profiles", new),
        ("GET", f"/api/v1/projects/slug/{world.a.account.slug}", None),
    ]
    for method, path, body in calls:
        answer = await ask(world, method, path, body, **theirs)
        assert answer.status_code == 404, (method, path, answer.text)
    assert (await ask(world, "GET", CERTIFICATES, **theirs)).json() == {"certificates": [], "totalCount": 0}


async def test_certificates_are_found_by_what_is_known_of_them(world: World) -> None:
    """By CA, profile, name, alternative name, serial number, state and expiry, in pages, the newest first."""
    made = await profile(world, {})
    serials = []
    for host, ttl in (("a.example.com", "10d"), ("b.example.com", "20d"), ("c.example.com", "30d")):
        asked = {"profileId": made["id"], "attributes": wanted(commonName=host, ttl=ttl)}
        serials.append((await told(world, "POST", CERTIFICATES, asked))["certificate"]["serialNumber"])
    await told(world, "POST", f"/api/v1/pki/certificates/{serials[1]}/revoke", {"revocationReason": "SUPERSEDED"})
    of_ca = f"caId={made['caId']}"
    found: dict[str, list[int]] = {
        f"profileId={made['id']}": [2, 1, 0],
        f"{of_ca}&status=active": [2, 0],
        f"{of_ca}&status=revoked": [1],
        f"{of_ca}&status=expired": [],
        f"{of_ca}&commonName=A.example.com": [0],
        f"{of_ca}&san=c.example.com": [2],
        f"{of_ca}&san=example.com": [],
        f"serialNumber={serials[0].upper()}": [0],
        f"{of_ca}&san=%00": [],
        "caId=x": [],
        f"caId={uuid4()}": [],
    }
    for query, wanted_ones in found.items():
        answer = await told(world, "GET", f"{CERTIFICATES}?{query}")
        got = [
            serials.index(each["serialNumber"]) for each in answer["certificates"] if each["serialNumber"] in serials
        ]
        assert got == wanted_ones, query
    (root_too,) = (await told(world, "GET", f"{CERTIFICATES}?{of_ca}&limit=1&offset=3"))["certificates"]
    assert root_too["commonName"] == "Root"
    assert (await told(world, "GET", f"{CERTIFICATES}?{of_ca}&limit=2"))["totalCount"] == 4
    await days_pass(world, made["caId"], 15)
    for query in (f"{of_ca}&status=expired", f"{of_ca}&expiresBefore=2026-01-01T00:00:00Z"):
        answer = await told(world, "GET", f"{CERTIFICATES}?{query}")
        assert answer["totalCount"] == (1 if "expired" in query else 0), query
    for bad in ("status=dead", "limit=x", "offset=-1", "expiresBefore=soon", "limit=1&limit=2"):
        assert (await ask(world, "GET", f"{CERTIFICATES}?{bad}")).status_code == 422, bad


async def test_a_ca_that_is_deleted_by_force_leaves_a_last_crl(world: World) -> None:
    """Refused without force and while CAs are below; then what it signed is on a CRL that outlives it."""
    ca, below = await root(world), await root(world)
    body = {"type": "intermediate", "commonName": "Below", "keyAlgorithm": "EC_prime256v1"}
    child = await told(
        world, "POST", f"{API}/ca/internal", {"name": f"c-{below}", "status": "active", "configuration": body}
    )
    one = f"{API}/ca/internal/{ca}"
    dates = {"notAfter": "2031", "parentCaId": ca}
    await told(world, "POST", f"{API}/ca/internal/{child['id']}/certificate", dates)
    leaf = {"caId": ca, "csr": csr_of(KEY), "ttl": "400d"}
    serial = (await told(world, "POST", "/api/v1/pki/certificates/sign-certificate", leaf))["serialNumber"]
    assert (await ask(world, "DELETE", one)).status_code == 400
    assert (await ask(world, "DELETE", f"{one}?force=true")).status_code == 400
    assert (await ask(world, "DELETE", f"{one}?force=maybe")).status_code == 422
    await told(world, "DELETE", f"{API}/ca/internal/{child['id']}?force=true")
    certificate = x509.load_pem_x509_certificate(
        (await told(world, "GET", f"{one}/certificate"))["certificate"].encode()
    )
    await told(world, "DELETE", f"{one}?force=true")
    assert (await ask(world, "GET", one)).status_code == 404
    answer = await world.http.get(f"/api/v1/pki/crl/{ca}/der")
    crl = x509.load_der_x509_crl(answer.content)
    assert crl.is_signature_valid(certificate.public_key())  # type: ignore[arg-type]
    assert int(serial, 16) in [entry.serial_number for entry in crl]
    assert len(list(crl)) == 2
    left = crl.next_update_utc
    assert left is not None
    assert (left - crl.last_update_utc).days >= 399
    keys = await world.database.fetchrow("SELECT count(*) AS n FROM certificate_authorities WHERE id = $1", ca)
    assert keys
    assert keys["n"] == 0


async def test_an_application_with_a_profile_that_is_not_there_is_not_made(world: World) -> None:
    """Nor is one that is attached to some of the profiles: it is one transaction."""
    name = f"app-{uuid4().hex[:8]}"
    body = {"name": name, "profileIds": [str(uuid4())]}
    assert (await ask(world, "POST", f"{API}/applications", body)).status_code == 404
    assert (await ask(world, "GET", f"{API}/applications/by-name/{name}")).status_code == 404
    made = await profile(world, {})
    application = (await told(world, "POST", f"{API}/applications", {**body, "profileIds": [made["id"]]}))[
        "application"
    ]
    (link,) = (await told(world, "GET", f"{API}/applications/{application['id']}/profiles"))["profiles"]
    assert link["profileSlug"] == made["slug"]
