"""Renewal rules of a real server: the command, both ways, and an official client that knows of no rules."""

import json
from collections.abc import Callable
from typing import Any

import cloudflare
import httpx
import pytest
from support.authority import pem
from support.command import beside, run_command
from support.live import Live
from support.world import BODY

Run = Callable[..., str]
Json = dict[str, Any]


@pytest.fixture(params=["the API", "the database"])
def keystead(live: Live, request: pytest.FixtureRequest) -> Run:
    """Runs the command over the API, or beside the server; gives its output, or its errors where it `fails`."""
    environ = live.env if request.param == "the API" else beside(live)

    def run(*words: str, fails: bool = False) -> str:
        ended = run_command(environ, "certificate", *words)
        assert (ended.status != 0) is fails, ended
        return ended.err if fails else ended.out

    return run


@pytest.fixture
def certificate_id(live: Live) -> str:
    """A certificate that falls due in 60 days."""
    with httpx.Client(base_url=live.url, headers=live.bearer, timeout=60) as http:
        csr = http.post(live.zone_path, json=BODY).json()["result"]
        body = {"certificate": pem(live.ca.of_csr(csr["csr"])), "custom_csr_id": csr["id"]}
        made = http.post(live.zone_path.replace("csrs", "certificates"), json=body).json()["result"]
    found: str = made["id"]
    return found


@pytest.fixture
def ca_id(live: Live) -> str:
    body = {
        "projectSlug": live.env["KEYSTEAD_PROJECT_SLUG"],
        "type": "root",
        "commonName": "Rules Root",
        "keyAlgorithm": "EC_prime256v1",
    }
    answer = httpx.post(f"{live.url}/api/v1/pki/ca", json=body, headers=live.bearer, timeout=60)
    found: str = answer.json()["ca"]["id"]
    return found


def row(text: str) -> Json:
    (found,) = json.loads(text)
    made: Json = found
    return made


def test_the_command_sets_shows_and_removes_a_rule(live: Live, keystead: Run, certificate_id: str, ca_id: str) -> None:
    """A CA by its id, days or a fraction, and the key; what is listed is what was set; then there is none."""
    set_ = ("set", certificate_id, "--renew-with", ca_id, "--json")
    made = row(keystead(*set_, "--fraction", "0.33", "--new-key", "never"))
    assert (made["id"], made["renew_with"], made["new_key"]) == (certificate_id, ca_id, "never")
    made = row(keystead(*set_, "--days-before", "14"))
    assert (made["state"], made["new_key"]) == ("scheduled", "every")
    assert "say --days-before or --fraction" in keystead(*set_, "--days-before", "14", "--fraction", "0.3", fails=True)
    listed = json.loads(run_command(beside(live), "certificate", "renewals", "--json").out)
    (mine,) = [each for each in listed if each["id"] == certificate_id]
    assert {name: mine[name] for name in made if name != "state"} == {n: v for n, v in made.items() if n != "state"}
    assert "is renewed no more by itself" in keystead("set", certificate_id, "--no-renewal")
    assert "has no renewal rule" in keystead("set", certificate_id, "--no-renewal", fails=True).lower()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--days-before", "30"),
        ("--renew-with", "outside", "--no-renewal"),
        ("--no-renewal", "--new-key", "every"),
        ("--renew-with", "outside", "--days-before", "0"),
        ("--renew-with", "outside", "--fraction", "0.6"),
        ("--renew-with", "outside", "--fraction", "nan"),
        ("--renew-with", "outside", "--days-before", "30", "--fraction", "0.3"),
        ("--renew-with", "no-such-ca"),
        ("--renew-with", "outside", "--new-key", "sometimes"),
    ],
)
def test_what_makes_no_sense_is_said_in_a_line(keystead: Run, certificate_id: str, words: tuple[str, ...]) -> None:
    """Nothing is set, and the last line says why."""
    said = keystead("set", certificate_id, *words, fails=True)
    assert "Traceback" not in said
    assert said.strip()
    assert "has no renewal rule" in keystead("set", certificate_id, "--no-renewal", fails=True).lower()


def test_an_official_client_reads_a_certificate_with_a_rule(
    live: Live, certificate_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes over the member, which is there for whoever asks, and a PATCH with what it has read changes no rule."""
    for name, value in live.env.items():
        monkeypatch.setenv(name, value)
    zone_id = live.env["CLOUDFLARE_ZONE_ID"]
    path = f"{live.url}/client/v4/zones/{zone_id}/custom_certificates/{certificate_id}"
    rule = {"renew_with": "outside", "days_before": 7}
    assert httpx.put(f"{path}/keystead_renewal", json=rule, headers=live.bearer).status_code == 200
    with cloudflare.Cloudflare() as client:
        found = client.custom_certificates.get(certificate_id, zone_id=zone_id)
        assert found is not None
        assert found.id == certificate_id
        assert found.model_extra
        assert found.model_extra["keystead_renewal"]["days_before"] == 7
        listed = client.custom_certificates.list(zone_id=zone_id, per_page=50)
        assert certificate_id in {each.id for each in listed}
        client.custom_certificates.edit(certificate_id, zone_id=zone_id, extra_body={"keystead_renewal": None})
    told = httpx.get(path, headers=live.bearer).json()["result"]["keystead_renewal"]
    assert told["days_before"] == 7
