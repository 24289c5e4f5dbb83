"""Who can use the page of vdm serve: requests as other sites, programs and users send them."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from commands import output, train_digits
from test_serve import png
from test_serve_page import CHROMIUM, browser  # noqa: F401 (a fixture)
from variational_diffusion.web import guard

ROOT = "http://127.0.0.1:7860"
TOKEN = "of-the-test"
NAVIGATION = {"sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}


@pytest.fixture
def client(tmp_path):
    """A browser before a guarded page that answers everything with "in"."""
    app = guard.Guard(PlainTextResponse("in"), tmp_path, TOKEN)
    return TestClient(app, ROOT, cookies={"vdm-7860": TOKEN})


@pytest.mark.parametrize(
    "host", ["127.0.0.1:7860", "localhost:7860", "localhost:9000", "LOCALHOST"]
)
def test_a_host_of_this_machine_is_answered(client, host):
    cookie = f"vdm-{host.rpartition(':')[2]}={TOKEN}"
    assert client.get("/config", headers={"host": host, "cookie": cookie}).text == "in"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7860",
        "evil.example",
        "127.0.0.1.evil.example:7860",
        "localhost.evil.example",
        "evil.example:127.0.0.1",
        "127.0.0.1:7860@evil.example",
        "127.0.0.2:7860",
        "0.0.0.0:7860",
        "127.0.0.1:7860 ",
        "",
    ],
)
def test_another_name_is_refused(client, host):
    answer = client.get(f"/?token={TOKEN}", headers={"host": host})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://localhost:7860"},
        {"origin": "https://127.0.0.1:7860"},
        {"origin": "http://127.0.0.1:7860.evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
        {"sec-fetch-site": "cross-site", **NAVIGATION, "sec-fetch-dest": "iframe"},
    ],
    ids=str,
)
def test_another_page_is_refused(client, headers):
    assert client.get("/config", headers=headers).status_code == 403
    assert client.post("/gradio_api/upload", headers=headers, content=b"x").status_code == 403


def test_the_page_itself_and_a_link_to_it_come_in(client):
    own = {"origin": ROOT, "sec-fetch-site": "same-origin"}
    assert client.post("/gradio_api/queue/join", headers=own, content=b"{}").text == "in"
    link = {"sec-fetch-site": "cross-site", **NAVIGATION}
    assert client.get(f"/?token={TOKEN}", headers=link).text == "in"
    assert client.post("/gradio_api/queue/join", headers=link, content=b"{}").status_code == 403


def test_the_token_is_asked_for_once(tmp_path):
    client = TestClient(guard.Guard(PlainTextResponse("in"), tmp_path, TOKEN), ROOT)
    for wrong in ("/", "/config", "/?token=", "/?token=other", f"/?token={TOKEN}x", "/?token=é"):
        assert client.get(wrong).status_code == 403
    first = client.get(f"/?token={TOKEN}")
    assert first.text == "in"
    assert "HttpOnly; SameSite=Strict" in first.headers["set-cookie"]
    assert client.get("/config").text == "in"
    assert TestClient(guard.Guard(PlainTextResponse("in"), tmp_path, None), ROOT).get("/").text


def test_no_frame_and_no_referrer(client):
    for path in ("/", "/gradio_api/run/predict"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == "frame-ancestors 'none'"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/run/predict"),
        ("POST", "/gradio_api/api/predict/"),
        ("POST", "/gradio_api/call/predict"),
        ("POST", "/gradio_api/call/v2/predict"),
        ("POST", "/gradio_api/process_recording"),
        ("POST", "/gradio_api/upload/../run/predict"),
        ("POST", "/login"),
        ("PUT", "/gradio_api/upload"),
        ("DELETE", "/"),
        ("OPTIONS", "/gradio_api/upload"),
    ],
)
def test_there_is_no_other_way_than_the_queue(client, method, path):
    assert client.request(method, path, content=b"{}").status_code == 404


def test_uploads_are_limited_each_and_in_sum(client, tmp_path, monkeypatch):
    def upload(size):
        return client.post("/gradio_api/upload", content=bytes(size)).status_code

    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    monkeypatch.setattr(guard, "MAX_TOTAL", 2500)
    assert upload(1000) == 200
    assert upload(1001) == 413
    (tmp_path / "below").mkdir()
    (tmp_path / "below/held.png").write_bytes(bytes(1600))
    assert upload(900) == 200
    assert upload(901) == 413
    assert client.post("/gradio_api/upload", content=iter([b"x"])).status_code == 411
    assert client.get("/").text == "in"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:3000"])
def test_a_websocket_of_another_page_is_closed(client, origin):
    headers = {"host": "127.0.0.1:7860", "origin": origin}
    with pytest.raises(WebSocketDisconnect) as refused:  # noqa: SIM117 (it would be too long)
        with client.websocket_connect("/ws", headers=headers):
            pass
    assert refused.value.code == 1008


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_digits(tmp_path_factory.mktemp("guarded"))


def served(run, rooms, *options):
    """Start vdm serve with its files below `rooms`; return the process and the address."""
    command = [str(Path(sys.executable).with_name("vdm")), "serve", run, "--threads", "1", *options]
    environment = {**os.environ, "TMPDIR": str(rooms)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    rooms = tmp_path_factory.mktemp("rooms")
    process, address = served(run, rooms)
    yield address, rooms
    process.kill()
    process.communicate(timeout=30)


def test_the_server_answers_its_user_alone(server):
    address, rooms = server
    root = address.partition("?")[0]
    assert httpx.get(root).status_code == 403
    host = root.split("/")[2].replace("127.0.0.1", "evil.example")
    assert httpx.get(address, headers={"host": host}).status_code == 403
    with httpx.Client(base_url=root) as user:
        assert "<html" in user.get(address).text
        assert user.get("/config").json()["mode"] == "blocks"
        body = {"data": [], "fn_index": 0, "session_hash": "a"}
        for way in ("run/predict", "api/predict", "call/predict"):
            assert user.post(f"/gradio_api/{way}", json=body).status_code == 404
        assert user.get("/gradio_api/info").json()["named_endpoints"] == {}
        sent = user.post("/gradio_api/upload", files={"files": ("../../x.png", png_bytes())})
        (path,) = map(Path, sent.json())
    assert rooms in path.parents
    private = rooms / path.relative_to(rooms).parts[0]
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def png_bytes():
    import numpy as np  # noqa: PLC0415

    return png(np.zeros((8, 8), np.uint8))


class _Foreign(BaseHTTPRequestHandler):
    """A web site that asks a visitor's browser for the page."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<p>foreign</p>")

    def log_message(self, *_):
        pass


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_foreign_page_in_a_browser_gets_nothing(server, browser):  # noqa: F811
    """The visitor has the page open, with its cookie, in another tab of the same browser."""
    address, rooms = server
    root = address.partition("?")[0]
    before = {path for path in rooms.rglob("*") if path.is_file()}
    site = HTTPServer(("127.0.0.1", 0), _Foreign)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    visitor = browser.new_context()
    own, foreign = visitor.new_page(), visitor.new_page()
    asked, answers = [], []
    try:
        own.goto(address)
        own.get_by_role("tab", name="Sample").wait_for()
        foreign.on("request", lambda request: asked.append(request.url.startswith(root)))
        foreign.on("response", lambda answer: answers.append((answer.url, answer.status)))
        for name in ("localhost", "127.0.0.1"):
            foreign.goto(f"http://{name}:{site.server_port}/")
            told = foreign.evaluate(
                """async root => {
                    const form = new FormData();
                    form.append("files", new Blob(["x"]), "x.png");
                    const how = {credentials: "include"};
                    const tries = [
                        fetch(root + "config", how),
                        fetch(root + "config", {...how, mode: "no-cors"}),
                        fetch(root + "gradio_api/upload",
                              {...how, method: "POST", body: form, mode: "no-cors"}),
                        fetch(root + "gradio_api/queue/join",
                              {...how, method: "POST", body: "{}", mode: "no-cors"}),
                        new Promise((ok, no) => {
                            const image = new Image();
                            image.onload = ok; image.onerror = no;
                            image.src = root + "favicon.ico";
                        }),
                    ];
                    const done = await Promise.allSettled(tries);
                    return Promise.all(done.map(one => one.value?.text?.() ?? null));
                }""",
                root,
            )
            assert not any(told)
    finally:
        visitor.close()
        site.shutdown()
        site.server_close()
    assert sum(asked) >= 8  # a browser asks once for what failed just now
    assert {status for url, status in answers if url.startswith(root)} <= {403}
    assert {path for path in rooms.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_of_a_server(run, tmp_path, number):
    """What a kill leaves is removed by the next start, and nothing of one that is at work."""
    process, address = served(run, tmp_path)
    with httpx.Client() as user:
        user.get(address)
        upload = address.partition("?")[0] + "gradio_api/upload"
        (path,) = user.post(upload, files={"files": ("x.png", b"x")}).json()
    assert Path(path).exists()
    if number == signal.SIGKILL:
        _, other = served_and_ended(run, tmp_path)
        assert Path(path).exists(), other
    process.send_signal(number)
    process.communicate(timeout=30)
    assert Path(path).exists() == (number == signal.SIGKILL)
    if number == signal.SIGKILL:
        served_and_ended(run, tmp_path)
    assert not list(tmp_path.glob("*/*/"))


def served_and_ended(run, rooms):
    process, address = served(run, rooms)
    process.terminate()
    process.communicate(timeout=30)
    return process, address


def test_a_port_that_is_taken_and_a_room_of_somebody_else_are_told(
    run, tmp_path, capsys, monkeypatch
):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        told = output(capsys, ["serve", run, "--port", port, "--threads", "1"], 2).err
    assert f"port = {port}: taken" in told
    assert told.count("\n") == 1
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    rooms = tmp_path / f"vdm-serve-{os.getuid()}"
    rooms.mkdir(mode=0o755)
    assert "not a folder of yours alone" in output(capsys, ["serve", run, "--threads", "1"], 2).err
    rooms.rmdir()
    rooms.symlink_to(shutil.os.curdir)
    assert "not a folder of yours alone" in output(capsys, ["serve", run, "--threads", "1"], 2).err
