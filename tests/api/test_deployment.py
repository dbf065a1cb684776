"""The service behind a prefix, with TLS, and with the files of examples/ as they stand, but for ports and paths."""

import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from api.settings import Settings, load_settings
from api.tenancy.keys import create_key
from curator.client import Client
from curator.errors import BadInputError
from tests.api.serving import RECIPE, form, running, scored_store, started, task_rows

EXAMPLES = Path(__file__).parents[2] / "examples"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
LIMIT_S = 60
UNITS = ["ballast.service", "ballast-worker.service"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and mix.example that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=mix.example"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1,DNS:mix.example"]
    subprocess.run([*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


@pytest.mark.parametrize("passed_on", [True, False])
def test_links_stand_behind_the_prefix_whether_a_proxy_takes_it_off_or_not(tmp_path: Path, passed_on: bool) -> None:
    store = scored_store(tmp_path)
    before = "/ballast" if passed_on else ""
    with running(Settings(store=store.base, root_path="/ballast")) as url:
        made = httpx.post(f"{url}{before}/v1/mixes", **form(task_rows(4)), timeout=LIMIT_S)
        assert made.headers["location"] == f"/ballast/v1/mixes/{made.json()['mix_id']}"
        assert all(link.startswith("/ballast/v1/mixes/") for link in made.json()["links"].values())
        listed = httpx.get(f"{url}{before}/v1/mixes", timeout=LIMIT_S).json()["mixes"]
        assert listed[0]["links"] == made.json()["links"]
        job = httpx.post(
            f"{url}{before}/v1/mixes", headers={"Prefer": "respond-async"}, **form(task_rows(5)), timeout=LIMIT_S
        )
        assert job.headers["location"] == job.json()["links"]["self"] == f"/ballast/v1/jobs/{job.json()['job_id']}"
        data = httpx.head(f"{url}{before}/v1/mixes/{made.json()['mix_id']}/data?format=parquet")
        assert (data.status_code, data.headers["accept-ranges"]) == (200, "bytes")
        assert httpx.get(f"{url}{before}/openapi.json", timeout=LIMIT_S).json()["servers"] == [{"url": "/ballast"}]
        with Client(url + before) as client:
            assert client.create_mix(task_rows(4), RECIPE)["created"] is False
            events = {event["action"]: event["mix_id"] for event in client.usage()}
        assert events["POST /v1/mixes"] == made.json()["mix_id"]


@pytest.mark.parametrize("prefix", ["ballast", "/ballast/", "//", "/a b", "/x/../y?"])
def test_a_prefix_that_cannot_be_is_refused(prefix: str) -> None:
    with pytest.raises(BadInputError, match="--root-path"):
        load_settings({"root_path": prefix})


def test_the_service_speaks_https_by_file(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    store = scored_store(tmp_path)
    with started(Path(store.base), "--tls-cert", str(cert), "--tls-key", str(key)) as (_, url):
        assert url.startswith("https://")
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=url, verify=context, timeout=LIMIT_S) as http:
            assert http.post("/v1/mixes", **form(task_rows(4))).status_code == 201
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{url}/healthz")


def test_silent_handshakes_hold_up_nobody_and_end(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """Before their handshake ends they are no connections of the protocol, yet take descriptors."""
    cert, key = certificate
    store = scored_store(tmp_path)
    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--head-timeout-s", "2")
    context = ssl.create_default_context(cafile=str(cert))
    with started(Path(store.base), *options, n_descriptors=128) as (process, url), ExitStack() as crowd:
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        silent = [crowd.enter_context(socket.create_connection(address, LIMIT_S, ("127.0.0.2", 0))) for _ in range(300)]
        with httpx.Client(base_url=url, verify=context, timeout=LIMIT_S) as http:
            assert http.get("/healthz").status_code == 200
            assert http.post("/v1/mixes", **form(task_rows(4))).status_code == 201
        assert psutil.Process(process.pid).num_fds() < 128
        assert all(_is_closed(connection) for connection in silent)


def _is_closed(connection: socket.socket) -> bool:
    """Waits for it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_files_that_are_no_pair_end_the_start(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    store = scored_store(tmp_path / "store")
    locked = tmp_path / "locked.pem"
    subprocess.run(
        ["openssl", "pkcs8", "-topk8", "-in", key, "-out", locked, "-passout", "pass:secret"],
        check=True,
        capture_output=True,
    )
    pairs = [(cert, cert), (cert, tmp_path / "none.pem"), (cert, locked)]
    for one, other in pairs:
        command = [sys.executable, "-m", "api", "--store", store.base, "--port", "0"]
        command += ["--tls-cert", str(one), "--tls-key", str(other)]
        done = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
        )
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert done.stderr.startswith("error: no TLS with")
    with pytest.raises(BadInputError, match="belong together"):
        load_settings({"tls_cert": str(cert)})
    with pytest.raises(BadInputError, match="belong together"):
        load_settings({"tls_key": str(key)})


def replaced(text: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(folder: Path, service: str, certificate: tuple[Path, Path]) -> Iterator[str]:
    """A real nginx with the example's configuration before a service; yields its address."""
    assert NGINX is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changes = {
        "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        "server 127.0.0.1:8765;": f"server {service.removeprefix('http://')};",
        "/etc/ssl/ballast/fullchain.pem": str(certificate[0]),
        "/etc/ssl/ballast/key.pem": str(certificate[1]),
        "/run/nginx.pid": str(folder / "nginx.pid"),
        "/var/log/nginx/": f"{folder}/",
        "http {": "http {\n" + "".join(f"    {name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy"))
        + "".join(f"    {name}_temp_path {folder}/{name};\n" for name in ("fastcgi", "uwsgi", "scgi")),
    }  # fmt: skip
    path = folder / "nginx.conf"
    path.write_text(replaced((EXAMPLES / "nginx.conf").read_text(), changes))
    command = [NGINX, "-p", str(folder), "-c", str(path), "-e", str(folder / "error.log")]
    with subprocess.Popen([*command, "-g", "daemon off;"], stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline_s = time.monotonic() + 20
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, process.stderr and process.stderr.read()
                    assert time.monotonic() < deadline_s, "nginx did not start"
                    time.sleep(0.05)
            yield f"https://127.0.0.1:{port}/ballast"
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=20)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx-light)")
def test_the_nginx_example_serves_under_its_prefix(
    tmp_path: Path, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = scored_store(tmp_path / "store")
    _, token = create_key(store, "acme", ["mix", "admin"])
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    settings = Settings(store=store.base, root_path="/ballast")
    with running(settings) as service, nginx(tmp_path, service, certificate) as url, Client(url, token) as client:
        made = client.create_mix(task_rows(40), RECIPE)
        for data_format in ("jsonl", "parquet", "arrow"):
            client.download(made["mix_id"], tmp_path / f"mix.{data_format}", data_format)
        headers = {"Authorization": f"Bearer {token}"}
        host = url.removesuffix("/ballast")
        followed = httpx.get(host + made["links"]["self"], headers=headers)
        assert followed.json()["mix_id"] == made["mix_id"]
        part = httpx.get(host + made["links"]["parquet"], headers={**headers, "Range": "bytes=0-3"})
        assert (part.status_code, part.content) == (206, b"PAR1")
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 403
        assert httpx.get(f"{host}/v1/mixes", headers=headers).status_code == 404
        job = client.create_mix(task_rows(5), RECIPE, background=True)
        assert job["links"]["self"].startswith("/ballast/v1/jobs/")


def unit(name: str) -> ConfigParser:
    """A unit file, read as the INI file that it is."""
    parser = ConfigParser(strict=False, interpolation=None, comment_prefixes=("#", ";"))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((EXAMPLES / name).read_text())
    return parser


@pytest.mark.parametrize("name", UNITS)
def test_units_start_commands_that_the_product_has(name: str, tmp_path: Path) -> None:
    found = unit(name)
    assert set(found) - {"DEFAULT"} == {"Unit", "Service", "Install"}
    program, *arguments = found["Service"]["ExecStart"].split()
    assert program == "/opt/ballast/bin/python"
    flags = {argument for argument in arguments if argument.startswith("--")}
    command = [sys.executable, *arguments[: arguments.index(min(flags, key=arguments.index))], "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(flag in shown for flag in flags)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is absent (Debian: systemd)")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(replaced((EXAMPLES / name).read_text(), {"/opt/ballast/bin/python": sys.executable}))
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, []), done.stderr
