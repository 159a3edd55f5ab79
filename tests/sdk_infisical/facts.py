"""Uses the official SDK, configured by the variables of the environment alone, and prints what it gave as JSON.

It runs where the SDK is installed; tests/judges/test_sdk_infisical.py says what the facts must be.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import infisicalapi_client as sdk  # type: ignore[import-not-found]
from infisical_sdk import InfisicalSDKClient  # type: ignore[import-not-found]

NAME = {
    "commonName": "Example CA",
    "organization": "Example, Inc.",
    "ou": "PKI",
    "country": "US",
    "province": "California",
    "locality": "San Francisco",
}
EC = {"keyAlgorithm": "EC_prime256v1"}
HOST, SLUG = os.environ["INFISICAL_HOST"], os.environ["INFISICAL_PROJECT_SLUG"]
CLIENT_ID, CLIENT_SECRET = os.environ["INFISICAL_CLIENT_ID"], os.environ["INFISICAL_CLIENT_SECRET"]
LEAF_CSR, UNKNOWN_TOKEN = os.environ["LEAF_CSR"], os.environ["UNKNOWN_TOKEN"]

client = InfisicalSDKClient(host=HOST)
logged_in = client.auth.universal_auth.login(client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
rest = client.rest
# The SDK's calls for CAs send no Authorization by themselves.
BEARER = {"_headers": {"Authorization": f"Bearer {logged_in.access_token}"}}


def shown(model: Any) -> Any:
    """The model that the SDK made of an answer, by the names of the wire."""
    return json.loads(model.json(by_alias=True))


def refusal(call: Callable[[], Any]) -> dict[str, Any]:
    """What a call that must fail was refused with, in the SDK's own terms."""
    try:
        return {"result": shown(call())}
    except sdk.ApiException as error:
        body, request_id = json.loads(error.body), error.headers["X-Request-Id"]
        return {"kind": type(error).__name__, "status": error.status, "body": body, "request_id": request_id}


def made(**fields: Any) -> Any:
    request = sdk.ApiV1PkiCaPostRequest(**{"projectSlug": SLUG, **NAME, **EC, **fields})
    return rest.api_v1_pki_ca_post(request, **BEARER).ca


def new_root() -> Any:
    # A CA signs nothing for its own name.
    return made(type="root", commonName="Example Root")


def new_intermediate() -> Any:
    return made(type="intermediate")


def csr_of(ca_id: str) -> Any:
    return rest.api_v1_pki_ca_ca_id_csr_get(ca_id, **BEARER).csr


def signed_by(root: Any, pending: Any) -> Any:
    request = sdk.ApiV1PkiCaCaIdSignIntermediatePostRequest(csr=csr_of(pending.id), notAfter="2035-06-12")
    return rest.api_v1_pki_ca_ca_id_sign_intermediate_post(root.id, request, **BEARER)


def imported(pending: Any, signed: Any) -> Any:
    fields = {"certificate": signed.certificate, "certificateChain": signed.certificate_chain}
    request = sdk.ApiV1PkiCaCaIdImportCertificatePostRequest(**fields)
    return rest.api_v1_pki_ca_ca_id_import_certificate_post(pending.id, request, **BEARER)


def root_and_intermediate() -> tuple[Any, Any]:
    """A root and an active intermediate below it."""
    root, pending = new_root(), new_intermediate()
    imported(pending, signed_by(root, pending))
    return root, rest.api_v1_pki_ca_ca_id_get(pending.id, **BEARER).ca


def leaf(ca_id: str) -> Any:
    request = sdk.ApiV1PkiCaCaIdSignCertificatePostRequest(csr=LEAF_CSR, ttl="90d")
    return rest.api_v1_pki_ca_ca_id_sign_certificate_post(ca_id, request, **BEARER)


def login() -> Any:
    told = shown(logged_in)
    return {**told, "accessToken": told["accessToken"] != CLIENT_SECRET}


def token_itself() -> Any:
    pending = new_intermediate()
    headers = {"Authorization": f"Bearer {CLIENT_SECRET}"}
    return shown(rest.api_v1_pki_ca_ca_id_csr_get(pending.id, _headers=headers))


def create_root() -> Any:
    sent = {"type": "root", "friendlyName": "Our root", "maxPathLength": 1, **NAME, **EC}
    return {"sent": sent, "made": shown(made(**sent))}


def create_intermediate() -> Any:
    sent = {"type": "intermediate", "friendlyName": "Our intermediate", "maxPathLength": 0, **NAME, **EC}
    return {"sent": sent, "made": shown(made(**sent))}


def create_without_options() -> Any:
    request = sdk.ApiV1PkiCaPostRequest(projectSlug=SLUG, type="intermediate", **NAME)
    return shown(rest.api_v1_pki_ca_post(request, **BEARER).ca)


def get() -> Any:
    both = (new_root(), new_intermediate())
    return [[shown(new), shown(rest.api_v1_pki_ca_ca_id_get(new.id, **BEARER).ca)] for new in both]


def csr() -> Any:
    return shown(rest.api_v1_pki_ca_ca_id_csr_get(new_intermediate().id, **BEARER))


def sign_intermediate() -> Any:
    root, pending = new_root(), new_intermediate()
    root_pem = rest.api_v1_pki_ca_ca_id_certificate_get(root.id, **BEARER).certificate
    return {"root": root_pem, "signed": shown(signed_by(root, pending))}


def import_certificate() -> Any:
    root, pending = new_root(), new_intermediate()
    signed = signed_by(root, pending)
    told = shown(imported(pending, signed))
    after = shown(rest.api_v1_pki_ca_ca_id_get(pending.id, **BEARER).ca)
    return {"root_id": root.id, "ca_id": pending.id, "serial": signed.serial_number, "told": told, "after": after}


def certificate() -> Any:
    root, pending = new_root(), new_intermediate()
    signed = signed_by(root, pending)
    imported(pending, signed)
    of_root, of_intermediate = [
        shown(rest.api_v1_pki_ca_ca_id_certificate_get(ca.id, **BEARER)) for ca in (root, pending)
    ]
    return {"signed": shown(signed), "of_root": of_root, "of_intermediate": of_intermediate}


def crl() -> Any:
    root, _ = root_and_intermediate()
    told = shown(rest.api_v1_pki_ca_ca_id_crl_get(root.id, **BEARER))
    return {"root": rest.api_v1_pki_ca_ca_id_certificate_get(root.id, **BEARER).certificate, "told": told}


def sign_certificate() -> Any:
    _, active = root_and_intermediate()
    return {"csr": LEAF_CSR, "signed": shown(leaf(active.id))}


def issue_certificate() -> Any:
    _, active = root_and_intermediate()
    request = sdk.ApiV1PkiCaCaIdIssueCertificatePostRequest(commonName="www.example.com", ttl="90d")
    return refusal(lambda: rest.api_v1_pki_ca_ca_id_issue_certificate_post(active.id, request, **BEARER))


def patch() -> Any:
    _, active = root_and_intermediate()
    statuses = []
    for status in ("disabled", "active"):
        request = sdk.ApiV1PkiCaCaIdPatchRequest(status=status)
        statuses.append(rest.api_v1_pki_ca_ca_id_patch(active.id, request, **BEARER).ca.status)
    return statuses


def issued() -> Any:
    _, active = root_and_intermediate()
    signed = leaf(active.id)
    found = shown(rest.api_v1_pki_certificates_serial_number_get(signed.serial_number, **BEARER).certificate)
    body = shown(rest.api_v1_pki_certificates_serial_number_certificate_get(signed.serial_number, **BEARER))
    return {"ca_id": active.id, "signed": shown(signed), "found": found, "body": body}


def revoke() -> Any:
    _, active = root_and_intermediate()
    serial = leaf(active.id).serial_number
    request = sdk.ApiV1PkiCertificatesSerialNumberRevokePostRequest(revocationReason="KEY_COMPROMISE")
    told = shown(rest.api_v1_pki_certificates_serial_number_revoke_post(serial, request, **BEARER))
    after = shown(rest.api_v1_pki_certificates_serial_number_get(serial, **BEARER).certificate)
    crl = rest.api_v1_pki_ca_ca_id_crl_get(active.id, **BEARER).crl
    return {"serial": serial, "told": told, "after": after, "crl": crl}


def delete() -> Any:
    new = new_intermediate()
    deleted = shown(rest.api_v1_pki_ca_ca_id_delete(new.id, **BEARER).ca)
    after = refusal(lambda: rest.api_v1_pki_ca_ca_id_get(new.id, **BEARER))
    return {"made": shown(new), "deleted": deleted, "after": after}


def bad_request() -> Any:
    root = new_root()
    return refusal(lambda: rest.api_v1_pki_ca_ca_id_csr_get(root.id, **BEARER))


def no_token() -> Any:
    pending = new_intermediate()
    return refusal(lambda: rest.api_v1_pki_ca_ca_id_csr_get(pending.id))


def unknown_token() -> Any:
    pending, headers = new_intermediate(), {"Authorization": f"Bearer {UNKNOWN_TOKEN}"}
    return refusal(lambda: rest.api_v1_pki_ca_ca_id_csr_get(pending.id, _headers=headers))


def wrong_secret() -> Any:
    stranger = InfisicalSDKClient(host=HOST)
    return refusal(lambda: stranger.auth.universal_auth.login(client_id=CLIENT_ID, client_secret=UNKNOWN_TOKEN))


def malformed_token() -> Any:
    pending, headers = new_intermediate(), {"Authorization": "Bearer x"}
    return refusal(lambda: rest.api_v1_pki_ca_ca_id_csr_get(pending.id, _headers=headers))


def not_found() -> Any:
    missing = str(uuid4())
    return {"id": missing, **refusal(lambda: rest.api_v1_pki_ca_ca_id_csr_get(missing, **BEARER))}


def unprocessable() -> Any:
    nameless = dict.fromkeys(NAME, "")
    return refusal(lambda: made(type="root", **nameless))


FACTS: tuple[Callable[[], Any], ...] = (
    *(login, token_itself, create_root, create_intermediate, create_without_options, get, csr),
    *(sign_intermediate, import_certificate, certificate, crl, sign_certificate, issue_certificate, patch),
    *(issued, revoke, delete),
    *(bad_request, no_token, unknown_token, wrong_secret, malformed_token, not_found, unprocessable),
)


def told(fact: Callable[[], Any]) -> Any:
    try:
        return fact()
    except Exception:  # noqa: BLE001 - a fact that fails leaves the others to be told
        return {"thrown": traceback.format_exc()}


json.dump({fact.__name__: told(fact) for fact in FACTS}, sys.stdout)
