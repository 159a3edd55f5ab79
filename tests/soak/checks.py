"""What must be so after any kill: the log of the clients beside the database, the keys and the API."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import httpx
import msgspec

from keystead.custody import keyring
from keystead.custody.ring import Ring
from keystead.errors import KeysteadError
from keystead.store import database as db
from soak.clients import Answer, spki

# What was found against each rule; a rule that holds has none.
Faults = dict[str, list[str]]
# What may end a request; those of the second line only after a try whose outcome was unknown.
ENDS = {
    "create": {(201, 0)},
    "repeat": {(201, 0)},
    "repeat of a deleted one": {(404, 1419)},
    "another body": {(409, 1456)},
    "attach": {(200, 0)},
    "renew": {(200, 0)},
    "delete CSR": {(200, 0)},
    "delete certificate": {(200, 0)},
    "delete in use": {(409, 1420)},
}
ENDS_LATER = {"delete CSR": (404, 1419), "delete certificate": (404, 1002)}

STRANGE = "answers that the contract does not have"
UNRESOLVED = "requests whose outcome stayed unknown"
TWO_CSRS = "Idempotency-Keys with more than one CSR"
TWICE = "keys handed out twice"
LOST = "acknowledged CSRs and certificates that are not there"
UNASKED = "CSRs and certificates that nobody was told of"
BACK = "deleted CSRs and certificates that are there"
UNDEAD = "private keys of deleted CSRs that are there"
OTHER_KEY = "private keys that do not open, or are not of their CSR"
UNAUDITED = "changes without their audit row"
OVERAUDITED = "audit rows without their change"
CLAIMS = "Idempotency-Keys whose claim names another CSR or certificate, or none"
NOT_RENEWED = "certificates that are not as last renewed, or lack a version"
API = "CSRs and certificates that the API shows otherwise"
LISTS = "lists with another total_count or other members"

# These hold at any moment, also while it is killed.
STANDING = {
    "private keys that nothing uses": """
        SELECT id::text FROM private_keys k
        WHERE NOT EXISTS (SELECT FROM custom_csrs c WHERE c.account_id = k.account_id AND c.key_id = k.id)
    """,
    "kept counts that are not those of the rows": """
        SELECT scope_id::text FROM (SELECT scope_id, count(*) AS held FROM custom_csrs GROUP BY scope_id) AS actual
        FULL JOIN (SELECT scope_id, sum(count) AS told FROM csr_counts GROUP BY scope_id) AS kept USING (scope_id)
        WHERE coalesce(held, 0) <> coalesce(told, 0)
    """,
    "rows that contradict the audit log": """
        SELECT id::text FROM (SELECT id FROM custom_csrs UNION ALL SELECT id FROM custom_certificates) AS here
        FULL JOIN (
            SELECT resource_id AS id, true AS known, count(*) FILTER (WHERE action = 'create') AS made,
                count(*) FILTER (WHERE action = 'delete') AS deleted
            FROM audit_log WHERE resource_type IN ('custom_csr', 'custom_certificate') AND result = 'success'
            GROUP BY resource_id
        ) AS audited USING (id)
        WHERE made IS DISTINCT FROM 1 OR deleted <> CASE WHEN here IS NULL THEN 1 ELSE 0 END
    """,
}


class Story(msgspec.Struct):
    """What the log says there must be: the tries of each request, and what came of them by id."""

    requests: list[list[Answer]]
    csrs: dict[str, Answer] = {}
    certificates: dict[str, Answer] = {}
    deleted: set[str] = set()
    renewals: dict[str, list[Answer]] = {}

    @property
    def made(self) -> dict[str, Answer]:
        return {**self.csrs, **self.certificates}

    def alive(self, of: dict[str, Answer]) -> dict[str, Answer]:
        return {id_: answer for id_, answer in of.items() if id_ not in self.deleted}


def story(answers: list[Answer]) -> Story:
    by_request = defaultdict[str, list[Answer]](list)
    for answer in answers:
        by_request[answer.request].append(answer)
    told = Story(list(by_request.values()))
    for tries in told.requests:
        last = tries[-1]
        if last.what.startswith("delete ") and last.what != "delete in use" and _is_done(tries):
            told.deleted.add(last.id)
        elif last.is_success and last.what == "create":
            told.csrs[last.id] = last
        elif last.is_success and last.what == "attach":
            told.certificates[last.id] = last
        elif last.is_success and last.what == "renew":
            told.renewals.setdefault(last.id, []).append(last)
    return told


def _is_done(tries: list[Answer]) -> bool:
    last = tries[-1]
    later = (last.status, last.code) == ENDS_LATER.get(last.what) and any(each.is_unknown for each in tries)
    return later or (last.status, last.code) in ENDS[last.what]


def of_the_log(told: Story) -> Faults:
    """What the answers say against each other."""
    faults: Faults = {rule: [] for rule in (STRANGE, UNRESOLVED, TWO_CSRS, TWICE)}
    ids, owners, digests = (defaultdict[str, set[str]](set) for _ in range(3))
    for tries in told.requests:
        last = tries[-1]
        if last.is_unknown:
            faults[UNRESOLVED].append(_said(last))
        elif not _is_done(tries):
            faults[STRANGE].append(_said(last))
        faults[STRANGE] += [_said(each) for each in tries[:-1] if not _may_go_on(each)]
        for each in tries:
            if each.is_success and each.what in {"create", "repeat", "repeat of a deleted one", "another body"}:
                ids[each.key].add(each.id)
                owners[each.digest].add(each.id)
                digests[each.id].add(each.digest)
    faults[TWO_CSRS] += [key for key, made in ids.items() if len(made) > 1]
    faults[TWICE] += [digest for digest, owned in owners.items() if len(owned) > 1]
    faults[TWICE] += [f"CSR {id_}" for id_, keys in digests.items() if len(keys) > 1]
    return faults


def _may_go_on(answer: Answer) -> bool:
    return answer.status == 0 or (answer.status == 503 and answer.code == 1501 and answer.retry_after.isdigit())


def _said(answer: Answer) -> str:
    return f"{answer.what} {answer.request}: {answer.status}/{answer.code}"


async def standing(connection: db.Connection) -> Faults:
    """Each rule is asked by one statement, so it sees one moment."""
    return {rule: [row[0] for row in await connection.fetch(sql)] for rule, sql in STANDING.items()}


async def of_the_database(told: Story, connection: db.Connection) -> Faults:
    """What the database holds beside what the clients were told."""
    csrs = {str(row["id"]): row for row in await connection.fetch("SELECT id, name FROM custom_csrs")}
    certificates = {str(row["id"]): row for row in await connection.fetch(_CERTIFICATES)}
    here, must = {*csrs, *certificates}, {*told.alive(told.made)}
    digests = {
        row["digest"] for row in await connection.fetch("SELECT encode(spki_sha256, 'hex') AS digest FROM private_keys")
    }
    names = Counter(row["name"] for row in csrs.values())
    buried = {answer.digest for id_, answer in told.csrs.items() if id_ in told.deleted}
    claims = {str(row["resource_id"]) for row in await connection.fetch("SELECT resource_id FROM idempotency_keys")}
    not_renewed = []
    for id_, attached in told.alive(told.certificates).items():
        renewals = told.renewals.get(id_, [])
        last = renewals[-1] if renewals else attached
        row = certificates.get(id_)
        if row and (row["digest"], str(row["custom_csr_id"]), row["versions"]) != (
            last.digest,
            last.csr_id,
            len(renewals),
        ):
            not_renewed.append(id_)
    return {
        LOST: sorted(must - here),
        UNASKED: sorted(here - {*told.made}),
        BACK: sorted(here & told.deleted),
        TWO_CSRS: [name for name, count in names.items() if count > 1],
        UNDEAD: sorted(buried & digests),
        CLAIMS: sorted(claims ^ {*told.csrs, *told.certificates}),
        NOT_RENEWED: not_renewed,
        **await _of_the_audit_log(told, connection),
    }


_CERTIFICATES = """
SELECT id, custom_csr_id, encode(sha256, 'hex') AS digest,
    (SELECT count(*) FROM certificate_history h WHERE h.certificate_id = c.id) AS versions
FROM custom_certificates c
"""


async def _of_the_audit_log(told: Story, connection: db.Connection) -> Faults:
    changes = Counter(
        [
            *(("custom_csr", "create", id_) for id_ in told.csrs),
            *(("custom_certificate", "create", id_) for id_ in told.certificates),
            *(("custom_csr", "delete", id_) for id_ in told.csrs if id_ in told.deleted),
            *(("custom_certificate", "delete", id_) for id_ in told.certificates if id_ in told.deleted),
            *(("custom_certificate", "update", id_) for id_, renewals in told.renewals.items() for _ in renewals),
        ]
    )
    audited = Counter({tuple(row)[:3]: row["rows"] for row in await connection.fetch(_AUDITED)})
    return {UNAUDITED: _named(changes - audited), OVERAUDITED: _named(audited - changes)}


_AUDITED = """
SELECT resource_type, action, resource_id::text, count(*) AS rows FROM audit_log
WHERE resource_type IN ('custom_csr', 'custom_certificate') AND result = 'success'
GROUP BY resource_type, action, resource_id
"""


def _named(changes: Iterable[tuple[str, ...]]) -> list[str]:
    return [" ".join(each) for each in changes]


async def of_the_keys(told: Story, database: db.Database, ring: Ring) -> Faults:
    """Open the key of every CSR that must be there, as that of the public key which its client was given."""
    bad = []
    for row in await database.fetch("SELECT account_id, id, key_id, csr FROM custom_csrs"):
        made = told.csrs.get(str(row["id"]))
        if made is None:
            continue
        try:
            digest = bytes.fromhex(made.digest)
            await keyring.open_key(database, ring, keyring.SYSTEM, (row["account_id"], row["key_id"], digest))
        except KeysteadError as error:
            bad.append(f"CSR {row['id']}: {error}")
        else:
            if spki(row["csr"]) != made.digest:
                bad.append(f"CSR {row['id']}")
    return {OTHER_KEY: bad}


def of_the_api(told: Story, http: httpx.Client) -> Faults:
    """Ask for everything by its id and list by list, as a client does."""
    faults: Faults = {API: [], LISTS: []}
    for id_, made in told.made.items():
        got = http.get(f"{made.path}/{id_}")
        gone = (404, 1419 if id_ in told.csrs else 1002)
        if id_ in told.deleted:
            good = (got.status_code, got.json()["errors"] and got.json()["errors"][0]["code"]) == gone
        else:
            result = got.json()["result"] or {}
            good = result.get("id") == id_ and (id_ in told.certificates or spki(result["csr"]) == made.digest)
        if not good:
            faults[API].append(f"{id_}: {got.status_code}")
    for path in sorted({made.path for made in told.made.values()}):
        must = Counter(id_ for id_, made in told.alive(told.made).items() if made.path == path)
        listed, total = _listed(path, http)
        if listed != must or total != must.total():
            faults[LISTS].append(f"{path}: {total} and {listed.total()} for {must.total()}")
    return faults


def _listed(path: str, http: httpx.Client) -> tuple[Counter[str], int]:
    found, page = Counter[str](), 1
    while True:
        body = http.get(path, params={"per_page": 50, "page": page}).json()
        total = body["result_info"]["total_count"]
        if not body["result"]:
            return found, total
        found.update(each["id"] for each in body["result"])
        page += 1
