"""Starting and stopping servers, with a small program in the place of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from apr.errors import CheckpointError, ConfigError, EngineError, StorageError
from apr.remote import Launch, Server, launched, serve
from apr.remote import launch as module

PROGRAM = """
import http.server, json, os, socket, subprocess, sys, time
words = sys.argv[1:] + ["--"]
flags = {a: b for a, b in zip(words, words[1:]) if a.startswith("--")}
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", json.dumps([flags, child.pid, os.getpid()]), flush=True)
if "--crash" in flags:
    sys.exit("out of memory: KV cache")
if "--stubborn" in flags:
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
ready = time.monotonic() + float(flags.get("--slow", 0))

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if time.monotonic() >= ready else 503)
        self.end_headers()
    def log_message(self, *args):
        pass

class Server(http.server.HTTPServer):
    address_family = socket.AF_INET6 if ":" in flags["--host"] else socket.AF_INET

Server((flags["--host"], int(flags["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launch:
    """Runs the program above; of vLLM, only the name is there."""
    monkeypatch.setattr(module, "_MODULES", {Server.VLLM: ("json", "json.server")})
    script = tmp_path / "server.py"
    script.write_text(PROGRAM)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 400}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return Launch(Server.VLLM, tmp_path, port=port, script=script, patience=60, grace=10, cpu=False)


def started(log: Path) -> tuple[dict[str, str], int, int]:
    """The flags that the program saw, the process that it left, and its own."""
    line = next(x for x in log.read_text().splitlines() if x.startswith("started"))
    flags, child, own = json.loads(line.removeprefix("started "))
    return flags, child, own


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return "State:\tZ" not in status


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_a_server_is_ready_in_the_body_and_gone_with_its_children_after(
    launch: Launch, tmp_path: Path
) -> None:
    log = tmp_path / "logs" / "log"
    launch = replace(launch, flags=("--slow", "1", "--max-model-len", "200"))
    with launched(launch, log) as process:
        assert httpx.get(f"http://127.0.0.1:{launch.port}/health").status_code == 200
        flags, child, _ = started(log)
        assert is_running(child)
        assert flags["--model"] == str(tmp_path)
        assert flags["--logprobs-mode"] == "raw_logprobs"
        assert flags["--max-model-len"] == "200"
    assert process.returncode is not None
    wait_until_gone(child)


def test_a_server_that_does_not_listen_to_reason_is_ended(launch: Launch, tmp_path: Path) -> None:
    launch = replace(launch, flags=("--stubborn", "1"), grace=0.2)
    with launched(launch, tmp_path / "log") as process:
        pass
    assert process.returncode == -9
    wait_until_gone(started(tmp_path / "log")[1])


def test_a_server_that_fails_to_start_says_why(launch: Launch, tmp_path: Path) -> None:
    with (
        pytest.raises(EngineError, match=r"(?s)ended with status 1.*out of memory: KV cache"),
        launched(replace(launch, flags=("--crash", "1")), tmp_path / "log"),
    ):
        pass
    wait_until_gone(started(tmp_path / "log")[1])


def test_a_server_that_is_never_ready_is_given_up(launch: Launch, tmp_path: Path) -> None:
    launch = replace(launch, flags=("--slow", "600"), patience=2)
    with pytest.raises(EngineError, match="within 2 s"), launched(launch, tmp_path / "log"):
        pass


@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_serves_until_it_is_asked_to_end(
    launch: Launch, tmp_path: Path, asked: signal.Signals
) -> None:
    log, told = tmp_path / "log", []

    def end(address: str) -> None:
        told.append(address)
        os.kill(os.getpid(), asked)

    before = signal.getsignal(asked)
    serve(launch, log, end)
    assert told == [launch.address]
    assert signal.getsignal(asked) is before
    wait_until_gone(started(log)[1])

    def kill(address: str) -> None:
        os.kill(started(log)[2], signal.SIGKILL)

    with pytest.raises(EngineError, match="ended with status -9"):
        serve(launch, log, kill)


@pytest.mark.timeout(60)
def test_who_asks_twice_waits_no_longer(launch: Launch, tmp_path: Path) -> None:
    launch, log = replace(launch, flags=("--stubborn",), grace=600.0), tmp_path / "log"

    def end(address: str) -> None:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        os.kill(os.getpid(), signal.SIGTERM)

    serve(launch, log, end)
    for pid in started(log)[1:]:
        wait_until_gone(pid)


def test_what_cannot_start_is_not_started(launch: Launch, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", launch.port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"port {launch.port}"), launched(launch, log):
            pass
    elsewhere = replace(launch, checkpoint=tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere"), launched(elsewhere, log):
        pass
    nobody = replace(launch, python=tmp_path / "python")
    with pytest.raises(ConfigError, match="cannot run"), launched(nobody, log):
        pass
    nowhere = replace(launch, host="nonsense..host")
    with pytest.raises(ConfigError, match=r"nonsense.*another --host"), launched(nowhere, log):
        pass
    foreign = replace(launch, host="192.0.2.1")  # for documentation: no machine has it
    with pytest.raises(ConfigError, match=r"192.*another --host"), launched(foreign, log):
        pass
    assert not log.exists()
    for place in (tmp_path, Path("/proc/x/y")):
        with pytest.raises(StorageError, match=f"^cannot write {place} "), launched(launch, place):
            pass


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_a_server_may_listen_on_ipv6(launch: Launch, tmp_path: Path) -> None:
    launch = replace(launch, host="::1")
    assert launch.address == f"vllm://[::1]:{launch.port}"
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6")
    with launched(launch, tmp_path / "log"):
        assert httpx.get(f"http://[::1]:{launch.port}/health").status_code == 200


def test_a_server_must_be_installed_where_it_is_to_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 400}))
    launch = Launch(Server.SGLANG, tmp_path, Path(sys.executable), port=0)
    with (
        pytest.raises(ConfigError, match="sglang is not installed"),
        launched(launch, tmp_path / "log"),
    ):
        pass
    with pytest.raises(ConfigError, match="no llamacpp"):
        Launch(Server.LLAMACPP, tmp_path)


def test_the_flags_are_those_that_the_engines_rely_on(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 400}))
    launch = Launch(Server.SGLANG, tmp_path, port=30000, cpu=True, flags=("--dp", "2"))
    command = launch.command
    assert command[command.index("--context-length") + 1] == "406"
    assert command[command.index("--device") + 1] == "cpu"
    assert command[-2:] == ["--dp", "2"]
    assert launch.variables["SGLANG_RETURN_ORIGINAL_LOGPROB"] == "1"
    assert launch.variables["PATH"] == os.environ["PATH"]
    assert launch.address == "sglang://127.0.0.1:30000"
    assert "--device" not in replace(launch, cpu=False).command
