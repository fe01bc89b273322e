"""A small W&B server on this machine: what `wandb sync` and an online run ask of one, kept in memory."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class ServerRun:
    """One run as the server knows it. `files`: name -> its lines, each put where the client said."""

    id: str
    config: dict[str, Any] = field(default_factory=dict)
    group: str | None = None
    name: str | None = None
    files: dict[str, list[str]] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    preempting: bool = False

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files.get("wandb-history.jsonl", [])]

    def resume_status(self) -> dict[str, Any]:
        history, summary = self.files.get("wandb-history.jsonl", []), self.files.get("wandb-summary.json", ["{}"])
        return {
            "id": self.id, "name": self.id, "displayName": self.name, "summaryMetrics": summary[-1],
            "logLineCount": 0, "eventsLineCount": len(self.files.get("wandb-events.jsonl", [])),
            "historyLineCount": len(history), "historyTail": json.dumps(history[-1:]), "eventsTail": "[]",
            "config": json.dumps(self.config), "tags": [], "notes": None, "wandbConfig": json.dumps({"t": 1}),
        }  # fmt: skip


@dataclass
class WandbServer:
    url: str
    runs: dict[str, ServerRun] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closed: bool = False
    """Answers nothing but errors, as a server that went away."""

    def query(self, text: str, values: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL request."""
        name = text.split("(")[0].split("{")[0].split()[-1]
        self.asked.append(name)
        if name == "UpsertBucket":
            run = self.runs.setdefault(values["name"], ServerRun(values["name"]))
            run.config = json.loads(values["config"]) if values.get("config") else run.config
            run.group = values.get("groupName") or run.group
            run.name = values.get("displayName") or run.name
            project = {"id": "p", "name": values.get("project") or "p", "entity": {"id": "e", "name": "team"}}
            bucket = {
                "id": run.id, "name": run.id, "displayName": run.name, "description": None, "config": "{}",
                "sweepName": None, "project": project, "historyLineCount": len(run.history),
            }  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": len(run.history) == 0}}
        if name == "RunResumeStatus":
            run = self.runs.get(values["name"])
            model = {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}}
            return {"model": {**model, "bucket": run.resume_status() if run else None}}
        if name == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/storage/{f}"} for f in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": files}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if name == "Viewer":
            node = {"id": "u", "entity": "team", "username": "u", "email": None, "flags": "{}", "teams": {"edges": []}}
            return {"viewer": node}
        return {}

    def stream(self, run_id: str, body: dict[str, Any]) -> None:
        run = self.runs.setdefault(run_id, ServerRun(run_id))
        for name, chunk in (body.get("files") or {}).items():
            lines, at = run.files.setdefault(name, []), chunk["offset"]
            lines[at : at + len(chunk["content"])] = chunk["content"]
        run.preempting |= bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve at `url` until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

        def answer(self, value: Any) -> None:
            text = json.dumps(value).encode()
            self.send_response(503 if server.closed else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            body = self.body()
            if server.closed:
                self.answer({})
            elif self.path.endswith("/graphql"):
                asked = json.loads(body)
                self.answer({"data": server.query(asked["query"], asked.get("variables") or {})})
            else:
                if self.path.endswith("/file_stream"):  # /files/<entity>/<project>/<run>/file_stream
                    server.stream(self.path.split("/")[-2], json.loads(body or b"{}"))
                self.answer({})

        def do_PUT(self) -> None:
            self.body()
            self.answer({})

        def do_GET(self) -> None:
            self.answer({})

        def log_message(self, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: Any) -> None:
            """A client that hangs up is no error."""

    http = Server(("127.0.0.1", 0), Handler)
    server = WandbServer(f"http://127.0.0.1:{http.server_port}")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
