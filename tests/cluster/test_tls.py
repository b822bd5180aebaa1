"""A cluster whose members have a certificate trains like one without, and refuses all other connections."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from distributed import Client
from distributed.security import Security
from processes import DQN, Cluster, wait_until
from test_dask import TRAIN

pytestmark = pytest.mark.cluster

PAGES = ("/health", "/metrics", "/sitemap.json", "/info/main/workers.html", "/info/logs.html", "/json/counts.json")
NO_ROUTES = {f"DASK_DISTRIBUTED__{role}__HTTP__ROUTES": "[]" for role in ("SCHEDULER", "WORKER")}
TLS = "DASK_DISTRIBUTED__COMM__TLS"


def certificate(directory: Path, name: str) -> tuple[str, str]:
    """Make a certificate that is signed with its own key; returns its file and that of the key."""
    found = str(directory / f"{name}.pem"), str(directory / f"{name}.key")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=dqn"]
    subprocess.run([*made, "-out", found[0], "-keyout", found[1]], check=True, capture_output=True)
    return found


def environment(file: str, key: str) -> dict[str, str]:
    """The environment of a member of a cluster with this certificate."""
    roles = {
        f"{TLS}__{role}__{part}": path
        for role in ("SCHEDULER", "WORKER", "CLIENT")
        for part, path in (("CERT", file), ("KEY", key))
    }
    return {**roles, f"{TLS}__CA_FILE": file, "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return certificate(tmp_path_factory.mktemp("ours"), "dqn")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, ours: tuple[str, str]) -> Iterator[Cluster]:
    home = str(tmp_path_factory.mktemp("home"))
    cluster = Cluster(
        tmp_path_factory.mktemp("tls"), {"DQN_HOME": home, **environment(*ours), **NO_ROUTES}, protocol="tls"
    )
    try:
        cluster.start_servers()
        for name, resource in (("first", "collector"), ("second", "collector"), ("third", "optimizer")):
            cluster.start_worker(name, resource)
        yield cluster
    finally:
        cluster.stop()


def test_training_with_certificates_has_the_digest_of_one_process(cluster: Cluster) -> None:
    digests = set()
    for name, variables in (("alone", cluster.environment), ("with-tls", cluster.settings)):
        done = subprocess.run([*TRAIN, "--name", name], env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = subprocess.run([*DQN, "verify", name, "--json"], env=variables, capture_output=True, text=True)
        digests.add(json.loads(found.stdout)["digest"])
    assert len(digests) == 1


def test_every_port_refuses_who_has_no_certificate(cluster: Cluster) -> None:
    """Schedulers, workers and the processes that watch workers listen on several ports, all on loopback."""
    wait_until(lambda: len(ports(cluster)) == 11, "a port of each of seven processes, and four for web pages")
    assert {address for address, _ in ports(cluster)} == {"127.0.0.1"}
    found = {port: pages(port) for _, port in ports(cluster)}
    assert [each for each in found.values() if each is not None] == [{"/sitemap.json"}] * 4  # the list of no pages
    for port in [port for port, each in found.items() if each is None]:
        assert not answers(port, None), "without TLS"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        assert not answers(port, context), "without a certificate"


def ports(cluster: Cluster) -> set[tuple[str, int]]:
    """Where the scheduler and the workers listen."""
    roots = [psutil.Process(process.pid) for name, process in cluster.running.items() if name != "prefect"]
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in [each for root in roots for each in (root, *root.children(recursive=True))]
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def pages(port: int) -> set[str] | None:
    """Those of Dask's pages that a port shows to everybody; None if it shows no pages."""
    try:
        return {page for page in PAGES if httpx.get(f"http://127.0.0.1:{port}{page}", timeout=30).status_code == 200}
    except httpx.HTTPError:
        return None


def answers(port: int, context: ssl.SSLContext | None) -> bool:
    """Whether a member of the cluster accepts a message from this connection."""
    try:
        with ExitStack() as opened:
            connection = opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            if context:
                connection = opened.enter_context(context.wrap_socket(connection))
            connection.sendall(b"\0" * 64)
            return bool(connection.recv(1))
    except OSError:
        return False


def test_client_without_our_certificate_runs_no_code(cluster: Cluster, tmp_path: Path, ours: tuple[str, str]) -> None:
    def security(file: str, key: str) -> Security:
        return Security(tls_ca_file=ours[0], tls_client_cert=file, tls_client_key=key, require_encryption=True)

    with Client(cluster.address, security=security(*ours), timeout=60) as client:
        assert client.submit(os.getpid).result(60) != os.getpid()
    with pytest.raises(OSError, match=r"unknown ca|Timed out"):
        Client(cluster.address, security=security(*certificate(tmp_path, "stranger")), timeout=10)


def test_worker_without_our_certificate_gets_no_task(cluster: Cluster, tmp_path: Path, ours: tuple[str, str]) -> None:
    """The worker trusts the scheduler, but the scheduler does not trust the worker."""
    wait_until(lambda: all(name in cluster.output("scheduler") for name in ("first", "second", "third")), "the workers")
    theirs = {**environment(*certificate(tmp_path, "stranger")), f"{TLS}__CA_FILE": ours[0]}
    cluster.start_worker("stranger", "collector", {**cluster.environment, **theirs}, "--death-timeout", "20")
    try:
        cluster.running["stranger"].wait(120)
    finally:
        cluster.kill("stranger")
    assert "unknown ca" in cluster.output("stranger")
    assert "stranger" not in cluster.output("scheduler")
