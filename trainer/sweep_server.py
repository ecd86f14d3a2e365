"""``python -m trainer.sweep_server``: speaks with W&B for a sweep's agents, which know it as lines of JSON.

- ``register``: reads the sweep file from standard input, prints its id, entity, project and address.
- ``agent SWEEP``: prints a line for each trial that W&B hands out, and waits for a line that says it has ended.
"""

import argparse
import contextlib
import json
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import wandb
import yaml

from configs.lifeline import end_with_parent

POLL_S = 1.0
"""Seconds between two moments at which W&B may stop a trial."""


def register(document: dict[str, Any], *, entity: str | None, project: str) -> dict[str, str | None]:
    """Have W&B make a sweep; returns where it is."""
    name = wandb.sweep(document, entity=entity, project=project)
    # The client leaves here what the server has answered.
    where = {"id": name, "entity": os.environ.get("WANDB_ENTITY"), "project": os.environ.get("WANDB_PROJECT")}
    address = wandb.Api().settings["base_url"].rstrip("/")
    return {**where, "url": f"{address}/{where['entity']}/{where['project']}/sweeps/{name}"}


def agent(name: str, *, entity: str, project: str, say: Callable[[dict[str, Any]], None], heard: TextIO) -> None:
    """Hand on W&B's trials one after the other, until it has no more."""

    def trial() -> None:
        """Called by W&B's client in a thread of its own; it stops a trial by an exception there."""
        run = os.environ["WANDB_RUN_ID"]
        chosen = yaml.safe_load(Path(os.environ["WANDB_SWEEP_PARAM_PATH"]).read_text(encoding="utf-8"))
        parameters = {key: item["value"] for key, item in chosen.items() if isinstance(item, dict) and "value" in item}
        try:
            say({"trial": run, "parameters": parameters})
            while not select.select([heard], [], [], POLL_S)[0]:
                pass
        except Exception:
            say({"stop": run})
            select.select([heard], [], [])
        if not heard.readline():
            os._exit(0)  # the agent is gone

    wandb.agent(name, function=trial, entity=entity, project=project)


def main() -> None:
    """Standard output is for lines of JSON alone; what W&B prints goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m trainer.sweep_server", description=__doc__)
    parser.add_argument("command", choices=("register", "agent"))
    parser.add_argument("--entity")
    parser.add_argument("--project", required=True)
    parser.add_argument("--id")
    arguments = parser.parse_args()
    end_with_parent(os.getppid())
    # Those of a shell inside another sweep would choose the run.
    for variable in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        os.environ.pop(variable, None)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")

    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    try:
        with contextlib.redirect_stdout(sys.stderr):
            if arguments.command == "register":
                say(register(json.load(sys.stdin), entity=arguments.entity, project=arguments.project))
            else:
                agent(arguments.id, entity=arguments.entity, project=arguments.project, say=say, heard=sys.stdin)
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
