"""cfssl beside a scene, where it is installed: it makes the same and keeps nothing."""

import base64
import hmac
import json
import shutil

from bench.measuring import FULL, Bench, Json, Side, process, script
from support.authority import key_pem, pem
from support.live import free_port

KEY = bytes(range(16))
_NAME = {"C": "US", "ST": "California", "L": "San Francisco", "O": "Cloudflare, Inc.", "OU": "Engineering"}
NEW_KEY: Json = {"hosts": FULL["sans"], "CN": "example.com", "names": [_NAME], "key": {"algo": "ecdsa", "size": 256}}
_POLICY = {
    "signing": {"default": {"expiry": "2160h", "usages": ["digital signature", "server auth"], "auth_key": "bench"}},
    "auth_keys": {"bench": {"type": "standard", "key": KEY.hex()}},
}


def signed(request: Json) -> Json:
    """A request for `authsign`, with its MAC."""
    text = json.dumps(request).encode()
    words = {"token": hmac.digest(KEY, text, "sha256"), "request": text}
    return {name: base64.b64encode(value).decode() for name, value in words.items()}


def duel(bench: Bench, scene: str, ours: Side, call: str, body: Json, wanted: str, connections: int = 16) -> None:
    """Ours beside this call of cfssl; alone where it is not installed."""
    if shutil.which("cfssl") is None:
        print("cfssl is not there (Debian: golang-cfssl), so there is no reference (e)")
        bench.alone(scene, ours, wanted)
        return
    folder, port = bench.folder, free_port()
    (folder / "ca.pem").write_text(pem(bench.live.ca.certificate))
    (folder / "ca.key").write_text(key_pem(bench.live.ca.key))
    (folder / "cfssl.json").write_text(json.dumps(_POLICY))
    words = ["-ca", str(folder / "ca.pem"), "-ca-key", str(folder / "ca.key"), "-config", str(folder / "cfssl.json")]
    command = ["cfssl", "serve", "-address", "127.0.0.1", "-port", str(port), "-loglevel", "5", *words]
    address = f"http://127.0.0.1:{port}"
    theirs = script(folder, call, body)
    with process(command, {}, address) as pid:
        url = f"{address}/api/v1/cfssl/{call}"
        side = Side(lambda: bench.wrk(url, script=theirs, connections=connections), (pid,))
        # The first requests of a server are not those of a warm one.
        side.load()
        bench.duel(f"{scene} / (e) cfssl {call}", ours, side, wanted)
