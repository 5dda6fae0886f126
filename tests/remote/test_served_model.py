"""A checkpoint of ours behind each kind of server: the same traces as over the embedded engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apr import api, cli, config
from apr.countdown.problem import Split
from apr.errors import EngineError
from apr.models.checkpoint import load_checkpoint
from apr.trace import Trace, read_traces
from tests.remote.conftest import Start
from tests.remote.fakes import Fake, FakeLlamaCpp, FakeSGLang, FakeVLLM
from tests.test_api import RECIPE, Trained
from tests.tiny import reference_logits

Ids = tuple[int, ...]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Trained(tmp_path_factory.mktemp("served")).checkpoint


@pytest.fixture(scope="module")
def embedded(checkpoint: Path) -> list[Trace]:
    return api.evaluate(api.load(checkpoint), api.pose(RECIPE, Split.TEST, 3))


def greedy(checkpoint: Path) -> Callable[[Ids], Ids]:
    """Continues a prompt to the end of the context, id by id."""
    model = load_checkpoint(checkpoint)

    def sample(prompt: Ids) -> Ids:
        ids = list(prompt)
        while len(ids) < model.config.max_position_embeddings:
            ids.append(int(reference_logits(model, torch.tensor(ids))[-1].argmax()))
        return tuple(ids[len(prompt) :])

    return sample


def calls(traces: list[Trace]) -> list[list[tuple[Ids, Ids, object]]]:
    return [
        [(c.prompt_ids, c.ids, c.finish_reason) for t in trace.threads for c in t.calls]
        for trace in traces
    ]


def serve(start: Start, kind: type[Fake], checkpoint: Path) -> Fake:
    server = start(kind, greedy(checkpoint), context=RECIPE.context)
    server.codec = api.load(checkpoint).codec
    return server


# The plain OpenAI kind tells text only, which does not spell the ids of a model this poor.
@pytest.mark.parametrize("kind", [FakeSGLang, FakeVLLM, FakeLlamaCpp], ids=lambda k: k.scheme)
def test_an_evaluation_over_a_server_has_the_traces_of_the_embedded_engine(
    start: Start, kind: type[Fake], checkpoint: Path, embedded: list[Trace]
) -> None:
    server = serve(start, kind, checkpoint)
    model = api.load(checkpoint, server.address)
    traces = api.evaluate(model, api.pose(RECIPE, Split.TEST, 3))
    assert calls(traces) == calls(embedded)
    assert [t.grade for t in traces] == [t.grade for t in embedded]
    assert "127.0.0.1" in str(traces[0].meta["server"]["url"])


def test_eval_takes_a_server(
    start: Start, checkpoint: Path, embedded: list[Trace], tmp_path: Path
) -> None:
    server = serve(start, FakeVLLM, checkpoint)
    out = tmp_path / "traces.jsonl"
    args = ["eval", checkpoint, "--engine", server.address, "--count", 3, "--out", out, "--json"]
    with pytest.raises(SystemExit) as ended:
        cli.app(list(map(str, args)), prog_name="apr")
    assert ended.value.code == 0
    assert calls(list(read_traces(out))) == calls(embedded)


def test_a_server_that_is_not_there_is_one_sentence(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["eval", checkpoint, "--engine", "vllm://127.0.0.1:9", "--out", tmp_path / "out.jsonl"]
    with pytest.raises(SystemExit) as ended:
        cli.app(list(map(str, args)), prog_name="apr")
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert told.startswith("error: ")
    assert "127.0.0.1:9" in told
    assert len(told.splitlines()) == 1
    assert not (tmp_path / "out.jsonl").exists()


def test_a_grid_goes_on_when_its_server_is_back(
    start: Start, checkpoint: Path, tmp_path: Path
) -> None:
    server = serve(start, FakeVLLM, checkpoint)
    recipe = config.build(
        api.GridRecipe,
        {
            "count": 3,
            "models": [{"name": "served", "checkpoint": str(checkpoint), "engine": server.address}],
            "entries": [{"models": ["served"]}],
        },
    )
    planned = api.plan_grid(recipe)
    assert f"--engine {server.address}" in planned[0].cell.command
    server.die()
    with pytest.raises(EngineError, match="does not answer"):
        api.run_grid(planned, tmp_path, "again")
    server.revive()
    (ran,) = api.run_grid(planned, tmp_path, "again")
    assert (ran.summary.num_problems, ran.summary.num_failed) == (3, 0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("tgi", "x"), "no server 'tgi': apr starts sglang and vllm"),
        (("vllm", "nowhere"), "cannot read the context from nowhere/config.json"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    args: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.app(["engine", "launch", *args], prog_name="apr")
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert words in err
    assert "starting" not in err


def test_a_server_is_looked_for_in_its_own_environment(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    args = ["engine", "launch", "vllm", checkpoint, "--python", sys.executable, "--port", 18_731]
    with pytest.raises(SystemExit) as ended:
        cli.app([*map(str, args), "--log", str(tmp_path / "log")], prog_name="apr")
    assert ended.value.code == 2
    err = capsys.readouterr().err
    assert "vllm is not installed for" in err
    assert "starting" not in err
