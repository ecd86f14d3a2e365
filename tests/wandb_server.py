"""A W&B server on loopback, as far as the real client needs one for runs and sweeps: what it was told is kept.

It answers the fields of GraphQL that wandb 0.31 asks for. An artifact of the same content is the same version, as the
client's code has it; aliases move. Sweeps are grids alone; an agent is handed the next trial
when it reports that it has none. A run that nobody resumes stays as it was left.
"""

import base64
import gzip
import itertools
import json
import os
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

import yaml

ENTITY = "team"
KEY = "c0ffee" * 6 + "c0de"
"""What a client authenticates with."""
TIME = "2026-01-01T00:00:00Z"
STREAM = re.compile(r"/files/[^/]+/[^/]+/([^/]+)/file_stream")
FILES = {"history": "wandb-history.jsonl", "events": "wandb-events.jsonl", "log": "output.log"}


@dataclass
class Run:
    """One run as the server sees it.

    Attributes:
        sessions: Times that a client has begun it, or gone on with it.
        lines: Text by line number, of each file that is streamed.
        preempting: Whether a client has said that it is being preempted.
        stopped: Whether somebody has stopped it on its page.
        alerts: Titles and texts.
        files: Of what was uploaded, by its path.
    """

    name: str
    project: str
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    sessions: int = 0
    exit_code: int | None = None
    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    preempting: bool = False
    stopped: bool = False
    alerts: list[tuple[str, str]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def summary(self) -> dict[str, Any]:
        """What holds for the whole run."""
        texts = [text for _, text in sorted(self.lines.get("wandb-summary.json", {}).items())]
        return dict(json.loads(texts[-1])) if texts else {}

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows that were logged."""
        return [json.loads(text) for _, text in sorted(self.lines.get("wandb-history.jsonl", {}).items())]

    def answer(self) -> dict[str, Any]:
        files = {kind: [text for _, text in sorted(self.lines.get(file, {}).items())] for kind, file in FILES.items()}
        tails = {f"{kind}Tail": json.dumps(lines[-1:]) for kind, lines in files.items()}
        counts = {f"{kind}LineCount": len(lines) for kind, lines in files.items()}
        return {
            "id": base64.b64encode(self.name.encode()).decode(),
            "name": self.name,
            "displayName": self.name,
            "sweepName": self.sweep,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "wandbConfig": json.dumps({"t": {}}),
            "tags": [],
            "stopped": self.stopped,
            "project": {"id": "P", "name": self.project, "entity": {"id": "E", "name": ENTITY}},
            **tails,
            **counts,
        }


@dataclass
class Sweep:
    """A sweep, the trials that are still to come, and the ids of those that agents were handed."""

    document: dict[str, Any]
    project: str
    waiting: list[dict[str, Any]]
    handed: list[str] = field(default_factory=list)


@dataclass
class Artifact:
    """A version of an artifact.

    Attributes:
        entries: Of its manifest, by the name of the file.
        files: Of what was uploaded, by its name.
        committed: Whether the client has said that it is whole.
    """

    id: str
    name: str
    type: str
    digest: str
    metadata: dict[str, Any]
    run: str
    aliases: set[str] = field(default_factory=set)
    entries: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False


class WandbServer:
    """Serves while it is entered.

    Attributes:
        artifacts: Versions of all artifacts, by id, the oldest first.
        held: Names of files of artifacts whose upload is answered only when they are not held any more.
        unknown: What a client asked that this server does not know.
        stop: Ids of runs that agents are to end.
        fault: How it fails: a status that it answers all requests with, or `hang`, with which it answers none; None is
            not at all.
    """

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.agents: dict[str, str] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.held: set[str] = set()
        self.unknown: list[str] = []
        self.stop: set[str] = set()
        self.fault: int | Literal["hang"] | None = None
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                while server.fault == "hang" or self.path.rpartition("/")[2] in server.held:
                    time.sleep(0.05)
                if server.fault is None:
                    with server._lock:
                        answer = server._answer(unquote(self.path.partition("?")[0]), body)
                else:
                    answer = {"errors": [{"message": "as a test wants it"}]}
                text = json.dumps(answer if answer is not None else {}).encode()
                self.send_response(server.fault or (200 if answer is not None else 404))
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def do_POST(self) -> None:
                self.do_GET()

            def do_PUT(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Http(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that was killed is none."""

        self._http = Http(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.fault = None  # nobody is held
        self.held.clear()
        self._http.shutdown()
        self._http.server_close()

    @property
    def variables(self) -> dict[str, str]:
        """By which a client finds it."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ERROR_REPORTING": "false"}

    def environment(self) -> dict[str, str]:
        """This process's, with these variables."""
        return {**os.environ, **self.variables}

    def _answer(self, path: str, body: bytes) -> dict[str, Any] | None:
        if path == "/graphql":
            return {"data": self._graphql(json.loads(body))}
        if found := STREAM.fullmatch(path):
            self._stream(self.runs[found[1]], json.loads(body))
            return {"exitcode": None, "limits": {}, "stopped": self.runs[found[1]].stopped}
        if path.startswith("/storage/"):
            _, _, run, name = path.split("/", 3)
            self.runs[run].files[name] = body
            return {}
        if path.startswith("/artifacts/"):
            _, _, artifact, name = path.split("/", 3)
            if name == "manifest":
                self.artifacts[artifact].entries = json.loads(body)["contents"]
            else:
                self.artifacts[artifact].files[name.removeprefix("files/")] = body
            return {}
        self.unknown.append(path)
        return None

    def versions(self, name: str) -> list[Artifact]:
        """Of an artifact, those that are whole, the oldest first."""
        return [each for each in self.artifacts.values() if each.name == name and each.committed]

    def _stream(self, run: Run, told: dict[str, Any]) -> None:
        for name, chunk in (told.get("files") or {}).items():
            lines = run.lines.setdefault(name, {})
            lines |= {chunk["offset"] + number: text for number, text in enumerate(chunk["content"])}
        run.preempting |= bool(told.get("preempting"))
        if told.get("complete"):
            run.exit_code = told.get("exitcode", 0)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers the fields at the root of a document by the methods of their names."""
        given = request.get("variables") or {}
        given = {**given, **(given.get("input") or {})}
        answers = {}
        for alias, name in _roots(request["query"]):
            method = getattr(self, "_" + re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", name), None)
            if method is None:
                self.unknown.append(name)
            answers[alias] = method(given) if method else None
        return answers

    def _viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        names = {"id": "U", "entity": ENTITY, "username": ENTITY, "name": ENTITY, "email": "", "flags": "{}"}
        return {**names, "admin": False, "teams": {"edges": []}, "apiKeys": {"edges": []}}

    def _server_info(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"cliVersionInfo": {"max_cli_version": "9.9.9"}, "latestLocalVersionInfo": None, "features": []}

    def _entity(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"organization": None}

    def _upsert_bucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or base64.b64decode(given.get("id") or "").decode()
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name, given.get("project") or "uncategorized"))
        run.sessions += 1 if given.get("program") or given.get("host") else 0
        run.config = json.loads(given["config"]) if given.get("config") else run.config
        run.sweep = given.get("sweep") or run.sweep
        return {"bucket": run.answer(), "inserted": inserted}

    def _model(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given.get("name") or given.get("run") or "")
        bucket = run.answer() if run else None
        return {"id": "P", "name": given.get("project"), "entity": {"id": "E", "name": ENTITY}, "bucket": bucket}

    def _project(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(given.get("name") or given.get("run") or "")
        return {"id": "P", "name": given.get("project"), "run": run.answer() if run else None, "artifact": None}

    def _create_run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        run = given.get("run") or given.get("name") or given.get("runName")
        files = [{"name": name, "uploadUrl": f"{self.url}/storage/{run}/{name}"} for name in given["files"]]
        return {"runID": "R", "uploadHeaders": [], "files": files}

    def _notify_scriptable_run_alert(self, given: dict[str, Any]) -> dict[str, Any]:
        self.runs[given["runName"]].alerts.append((given["title"], given["text"]))
        return {"success": True}

    def _create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        name, digest = given["artifactCollectionName"], given["digest"]
        versions = self.versions(name)
        artifact = next((each for each in versions if each.digest == digest), None)
        if artifact is None:
            number, metadata = f"A{len(self.artifacts)}", json.loads(given.get("metadata") or "{}")
            artifact = Artifact(number, name, given["artifactTypeName"], digest, metadata, given["runName"])
            self.artifacts[number] = artifact
        aliases = {each["alias"] for each in given.get("aliases") or ()} | {"latest"}
        for each in self.artifacts.values():
            if each.name == name:
                each.aliases -= aliases
        artifact.aliases |= aliases
        state = "COMMITTED" if artifact.committed else "PENDING"
        latest = {"id": versions[-1].id} if versions else None
        return {"artifact": {"id": artifact.id, "state": state, "artifactSequence": {"latestArtifact": latest}}}

    def _create_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = given.get("artifactID") or given["artifactManifestID"].removeprefix("M")
        file = {"id": "F", "uploadUrl": f"{self.url}/artifacts/{artifact}/manifest", "uploadHeaders": []}
        return {"artifactManifest": {"id": f"M{artifact}", "file": file}}

    def _update_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        return self._create_artifact_manifest(given)

    def _create_artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for each in given["artifactFiles"]:
            artifact, path = each["artifactID"], f"/artifacts/{each['artifactID']}/files/{each['name']}"
            urls = {"uploadUrl": self.url + path, "uploadHeaders": [], "uploadMultipartUrls": None}
            nodes.append({"storagePath": path, "artifact": {"id": artifact}, **urls})
        return {"files": {"edges": [{"node": node} for node in nodes]}}

    def _commit_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        artifact = self.artifacts[given["artifactID"]]
        artifact.committed = True
        return {"artifact": {"id": artifact.id, "digest": artifact.digest}}

    def _artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self.artifacts[given["id"]]
        project = {"id": "P", "internalId": "1", "name": "toys", "entity": {"name": ENTITY}}
        of = {"__typename": "ArtifactSequence", "name": found.name, "project": project}
        aliases = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in sorted(found.aliases)]
        return {
            "__typename": "Artifact", "id": found.id, "artifactSequence": of, "artifactType": {"name": found.type},
            "versionIndex": list(self.artifacts).index(found.id), "metadata": json.dumps(found.metadata),
            "aliases": [{**alias, "artifactCollection": of} for alias in aliases], "description": None, "tags": [],
            "historyStep": None, "state": "COMMITTED", "size": 1, "digest": found.digest, "digestAlgorithm": None,
            "commitHash": found.id, "fileCount": len(found.entries), "createdAt": TIME, "updatedAt": TIME,
            "ttlDurationSeconds": -1, "ttlIsInherited": False,
        }  # fmt: skip

    def _upsert_sweep(self, given: dict[str, Any]) -> dict[str, Any]:
        document = yaml.safe_load(given["config"])
        lists = {key: spec.get("values") or [spec["value"]] for key, spec in document["parameters"].items()}
        trials = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
        name, project = f"sweep{len(self.sweeps):03d}", given["projectName"]
        self.sweeps[name] = Sweep(document, project, trials)
        where = {"id": "P", "name": project, "entity": {"id": "E", "name": ENTITY}}
        return {"sweep": {"name": name, "project": where}, "configValidationWarnings": []}

    def _create_agent(self, given: dict[str, Any]) -> dict[str, Any] | None:
        if given["sweep"] not in self.sweeps:
            return None
        name = f"agent{len(self.agents)}"
        self.agents[name] = given["sweep"]
        return {"agent": {"id": name}}

    def _agent_heartbeat(self, given: dict[str, Any]) -> dict[str, Any]:
        name = self.agents[given["id"]]
        sweep, running = self.sweeps[name], json.loads(given["runState"])
        commands: list[dict[str, Any]] = [{"type": "stop", "run_id": run} for run in running if run in self.stop]
        if not running and sweep.waiting:
            chosen, run = sweep.waiting.pop(0), f"trial{len(sweep.handed):03d}"
            sweep.handed.append(run)
            arguments = {key: {"value": value} for key, value in chosen.items()}
            self.runs[run] = Run(run, sweep.project, sweep=name, config=arguments)
            commands = [{"type": "run", "run_id": run, "args": arguments}]
        elif not running:
            commands = [{"type": "exit"}]
        return {"agent": {"id": given["id"]}, "commands": json.dumps(commands)}


def _roots(query: str) -> list[tuple[str, str]]:
    """Alias and name of each field at the root of a document of GraphQL."""
    query = re.sub(r"#[^\n]*", "", query)
    begin = re.search(r"\b(query|mutation)\b\s*\w*\s*(\((?:[^()]|\([^()]*\))*\))?\s*\{", query)
    assert begin is not None, query
    depth, found = 0, []
    for token in re.finditer(r"[{}()]|(?:(\w+)\s*:\s*)?(\w+)", query[begin.end() :]):
        if token[0] in "{(":
            depth += 1
        elif token[0] in "})":
            depth -= 1
        elif depth == 0:
            found.append((token[1] or token[2], token[2]))
        if depth < 0:
            break
    return found
