"""What `keystead deliver` tells the operator's program: what is new, once, and what ends soon, each day once."""

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from support.delivery import Host, Site
from support.live import Live

from keystead.delivery.telling import News
from keystead.delivery.work import Outcome, Result
from keystead.programs import Event

FAR = datetime.now(UTC) + timedelta(days=80)


def told(news: News, *outcomes: Outcome) -> list[tuple[Event, str, str]]:
    found = news.notices(news.of(outcomes), outcomes)
    return [(each.event, each.delivery, each.reason) for each in found]


def test_what_goes_on_is_told_once() -> None:
    """A failure when it begins and when its reason changes, each delivery, and nothing of what is unchanged."""
    news = News()
    failed = Outcome("www", Result.FAILED, "nginx -t ended with 1", FAR)
    assert told(news, failed) == [(Event.FAILED, "www", failed.text)]
    assert told(news, failed) == []
    other = Outcome("www", Result.WITHHELD, "the certificate is revoked", FAR)
    assert told(news, other) == [(Event.FAILED, "www", other.text)]
    done, quiet = Outcome("www", Result.DELIVERED, "", FAR), Outcome("www", Result.UNCHANGED, "", FAR)
    assert told(news, done) == told(news, done) == [(Event.RENEWED, "www", "")]
    assert told(news, quiet) == []


def test_what_ends_soon_is_told_on_each_day_once() -> None:
    """Within 14 days, of each delivery by itself."""
    news, soon = News(), datetime.now(UTC) + timedelta(days=13)
    www, api = Outcome("www", Result.UNCHANGED, "", soon), Outcome("api", Result.UNCHANGED, "", FAR)
    assert told(news, www, api) == [(Event.EXPIRING, "www", "it ends within 14 days")]
    assert told(news, www, Outcome("api", Result.UNCHANGED, "", soon)) == [
        (Event.EXPIRING, "api", "it ends within 14 days")
    ]
    news._days["www"] -= timedelta(days=1)
    assert told(news, www, api) == [(Event.EXPIRING, "www", "it ends within 14 days")]


def test_the_program_of_the_configuration_is_told(host: Host, live: Live) -> None:
    """One line of JSON on its standard input; a dry run tells nobody, and a program that fails harms nothing."""
    site = Site(live, f"{uuid4().hex[:12]}.example.com")
    notices = host.folder / "notices"
    program = host.folder / "told"
    program.write_text(f"#!/bin/sh\ncat >> {notices}\nexit 1\n")
    program.chmod(0o755)
    host.configure(host.pair(f'certificate = "{site.id}"'), more=f'tell = ["{program}"]')
    assert host.deliver("--dry-run").status == 0
    assert not notices.exists()
    assert host.deliver().status == 0
    assert host.deliver().status == 0
    [line] = notices.read_text().splitlines()
    ends = f"{site.leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%S}.000000Z"
    assert json.loads(line) == {"event": "renewed", "delivery": "www", "expires_on": ends}
