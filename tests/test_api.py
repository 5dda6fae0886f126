"""From a recipe to a solved problem, through the real parts at the smallest size."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import apr
from apr import api, config
from apr.api.training import batches_of, codec_of, network_of
from apr.countdown.demonstrate import Condition
from apr.countdown.narrate import Telling, Text
from apr.countdown.problem import Problem, Split, split_of
from apr.data.packing import IGNORE, Place
from apr.engine import EmbeddedEngine, EngineConfig
from apr.errors import (
    CheckpointError,
    ConfigError,
    ContextError,
    DataError,
    EngineError,
    ProblemError,
    StorageError,
)
from apr.models.checkpoint import save_checkpoint
from apr.models.precision import Precision
from apr.runtime import Limits, Observer
from apr.testing import ByteCodec, Reply, ScriptedEngine
from apr.trace import End, Trace, read_traces, write_traces

RECIPE = config.build(
    api.Recipe,
    {
        "sft": {"steps": 4, "rows": 4, "row_length": 160, "eval_every": 2, "save_every": 2},
        "demonstrations": {
            "problems": {"num_numbers": [3, 3], "high": 9, "target_high": 30},
            "solver": {"spawn_depth": 1},
        },
        "count": 32,
        "held_out": 24,
        "context": 160,
        "largest_number": 40,
        "network": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
        },
    },
)
POSED = Problem((3, 5, 8), 29)


class Trained:
    """What the two commands of a training leave behind."""

    def __init__(self, home: Path) -> None:
        self.data, self.run = home / "data", home / "run"
        self.checkpoint = self.run / "checkpoint"
        self.manifests = api.make_data(RECIPE, self.data, progress=False)
        self.losses = api.train(RECIPE, self.run, self.data, progress=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def model(trained: Trained) -> api.Model:
    return api.load(trained.checkpoint)


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(trained.checkpoint, tmp_path / "copy"))


def scripted(reply: str | Reply, recipe: api.Recipe = RECIPE) -> api.Model:
    """A model that always says the same."""
    codec = ByteCodec()
    return api.Model(ScriptedEngine(lambda prompt: reply, codec), codec, recipe)


def test_data_covers_what_is_trained_on_and_what_is_held_out(trained: Trained) -> None:
    assert {s: m["tally"]["made"] for s, m in trained.manifests.items()} == {
        Split.TRAIN: 32,
        Split.VALID: 24,
    }
    again = api.make_data(RECIPE, trained.data, progress=False)
    assert again == trained.manifests


def test_a_checkpoint_knows_its_recipe(trained: Trained, model: api.Model) -> None:
    assert model.recipe == RECIPE
    assert model.engine.context == RECIPE.context
    manifest = json.loads((trained.checkpoint / "apr.json").read_text())
    assert manifest["held_out_loss"] == trained.losses.mean
    assert manifest["parameters"] == sum(
        w.numel() for w in load_file(trained.checkpoint / "model.safetensors").values()
    )


def test_a_finished_training_is_not_done_again(trained: Trained) -> None:
    weights = (trained.checkpoint / "model.safetensors").read_bytes()
    losses = api.train(RECIPE, trained.run, trained.data, progress=False)
    assert losses.mean == pytest.approx(trained.losses.mean)
    assert (trained.checkpoint / "model.safetensors").read_bytes() == weights


def test_a_run_of_an_older_version_goes_on(trained: Trained, tmp_path: Path) -> None:
    """A key that it did not know has the default."""
    run = Path(shutil.copytree(trained.run, tmp_path / "run"))
    raw = json.loads((run / "recipe.json").read_text())
    del raw["per_shard"], raw["sft"]["accumulate"]
    (run / "recipe.json").write_text(json.dumps(raw))
    assert api.train(RECIPE, run, trained.data, progress=False).mean == trained.losses.mean
    for text in (json.dumps(raw | {"seed": 7}), json.dumps(raw | {"magic": 7}), "{", "[]"):
        (run / "recipe.json").write_text(text)
        with pytest.raises(ConfigError, match="holds a run of another recipe"):
            api.train(RECIPE, run, trained.data, progress=False)


def test_watched_tokens_are_tokens_of_the_recipe(trained: Trained) -> None:
    assert set(trained.losses.by_class) == {"verdicts", "operations", "operators"}


def test_places_of_the_papers_text(tmp_path: Path) -> None:
    """A root's first call spawns; the one that goes on after it hears, and a child joins."""
    told = replace(RECIPE.demonstrations, text=Text.PAPER)
    recipe = replace(RECIPE, demonstrations=told, context=1_000)
    recipe = replace(recipe, sft=replace(RECIPE.sft, row_length=1_000))
    api.make_data(recipe, tmp_path, progress=False)
    batch, codec = batches_of(recipe, tmp_path / "train").batch(0), codec_of(recipe)
    targets, places = batch.targets_BT, batch.places_BT
    by_place = {
        place: {
            codec.decode([i]) for i in targets[(targets != IGNORE) & (places == place)].tolist()
        }
        for place in Place
    }
    assert "<Start Sub Search " in by_place[Place.SPAWN]
    assert "<Start Sub Search " not in by_place[Place.SEARCH] | by_place[Place.HEARD]
    assert " unequal: No Solution" in by_place[Place.SEARCH]
    assert " unequal: No Solution" not in by_place[Place.JOIN] | by_place[Place.HEARD]
    for place in (Place.JOIN, Place.HEARD):
        assert {"Moving to Node #", " equal: Goal Reached"} <= by_place[place]


def test_words_without_weight_are_not_learnt(trained: Trained, tmp_path: Path) -> None:
    without = replace(RECIPE, verdict_weight=0.0, operator_weight=0.0)
    losses = api.train(without, tmp_path / "run", trained.data, progress=False)
    for name in ("verdicts", "operators"):
        assert losses.by_class[name] > trained.losses.by_class[name]


def test_solve_grades_and_notes_where_the_trace_is_from(trained: Trained, model: api.Model) -> None:
    how = api.Inference(limits=Limits(context=100), temperature=1.0, seed=1)
    trace = api.solve(model, POSED, how)
    assert trace.problem == {"numbers": [3, 5, 8], "target": 29}
    assert trace.method == "apr"
    assert trace.grade is not None
    assert trace.meta["model"] == str(trained.checkpoint)
    assert trace.meta["tokenizer"] == api.codec_of(RECIPE).fingerprint
    assert trace.meta["context"] == 100
    assert config.build(api.Inference, trace.meta["inference"]) == how
    assert trace.longest_context <= 100


def test_serial_never_spawns(model: api.Model) -> None:
    posed = api.pose(RECIPE, Split.TEST, 3)
    how = api.Inference(api.MethodName.SERIAL, temperature=1.0, seed=0)
    traces = api.evaluate(model, posed, how)
    assert {len(t.threads) for t in traces} == {1}
    assert {t.method for t in traces} == {"serial"}


def test_an_observer_hears_every_token(model: api.Model) -> None:
    class Count(Observer):
        num_tokens = 0

        def on_tokens(self, path: tuple[int, ...], ids: Sequence[int]) -> None:
            self.num_tokens += len(ids)

    observer = Count()
    trace = api.solve(model, POSED, observer=observer)
    assert observer.num_tokens == trace.total_tokens > 0


def test_evaluated_traces_are_in_order_and_read_back_equal(
    model: api.Model, tmp_path: Path
) -> None:
    posed = api.pose(RECIPE, Split.TEST, 6)
    seen: list[Trace] = []
    traces = api.evaluate(model, posed, concurrency=4, on_trace=seen.append)
    assert [tuple(t.problem["numbers"]) for t in traces] == [p.numbers for p in posed]
    assert sorted(map(id, seen)) == sorted(map(id, traces))
    write_traces(tmp_path / "traces.jsonl", traces)
    assert list(read_traces(tmp_path / "traces.jsonl")) == traces


def test_greedy_and_seeded_traces_do_not_depend_on_what_runs_beside_them(model: api.Model) -> None:
    posed = api.pose(RECIPE, Split.TEST, 4)

    def ids(traces: list[Trace]) -> list[Any]:
        return [[c.ids for t in trace.threads for c in t.calls] for trace in traces]

    for how in (api.Inference(), api.Inference(temperature=1.0, seed=3)):
        together = api.evaluate(model, posed, how)
        alone = [api.solve(model, p, how) for p in posed]
        assert ids(together) == ids(alone)


def test_posed_problems_are_of_the_split_and_repeat() -> None:
    posed = api.pose(RECIPE, Split.TEST, 20)
    assert {split_of(p.numbers) for p in posed} == {Split.TEST}
    assert posed == api.pose(RECIPE, Split.TEST, 20)
    assert posed != api.pose(RECIPE, Split.TEST, 20, seed=1)


@pytest.mark.parametrize(
    ("telling", "heard"),
    [(Telling.THREADS, ""), (Telling.PASTA, "<thread> = 2 : 8 2 ,</thread>")],
)
def test_the_recipe_decides_what_parents_hear(telling: Telling, heard: str) -> None:
    told = replace(RECIPE.demonstrations, telling=telling)
    child = "<thread> 29 : 8 , 5 - 3</thread>"
    spawn = f"<spawn>{child}</spawn>"
    root = "<thread> 29 : 8 5 3</thread>"
    codec = ByteCodec()
    engine = ScriptedEngine(
        {
            root: spawn,
            child: " = 2 : 8 2<join></join>",
            f"{root}{spawn}<joined>{heard}</joined>": "<join></join>",
        },
        codec,
    )
    model = api.Model(engine, codec, replace(RECIPE, demonstrations=told))
    assert api.solve(model, POSED).num_children == 1


def test_solve_refuses_what_has_no_solution(model: api.Model) -> None:
    with pytest.raises(ProblemError, match="no way leads from 1 1 1 to 40"):
        api.solve(model, Problem((1, 1, 1), 40))


def test_solve_refuses_a_context_too_small_for_the_prompt(model: api.Model) -> None:
    with pytest.raises(ContextError, match="leaves no room in a context of 4"):
        api.solve(model, POSED, api.Inference(limits=Limits(context=4)))


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1}, {"window": -1}]
)
def test_inference_refuses_settings_that_mean_nothing(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        api.Inference(**bad)


@pytest.mark.parametrize(
    ("how", "label", "num_samples"),
    [
        ({"method": "best_of_n", "samples": 3}, "best of 3 serial, first", 3),
        ({"method": "best_of_n", "samples": 2, "chooser": "oracle"}, "best of 2 serial, oracle", 2),
        ({"method": "self_consistency", "samples": 3, "within": "apr"}, "cons@3 apr", 3),
        ({"method": "multi_agent", "samples": 2}, "2 agents, serial", 3),
        ({"method": "hogwild", "samples": 2}, "hogwild 2, first", 2),
        ({"method": "tree_of_thoughts", "tree": {"beam": 1}}, "tree of thoughts, logprob", None),
    ],
)
def test_methods_that_sample_do_so_with_the_model(
    model: api.Model, how: dict[str, Any], label: str, num_samples: int | None
) -> None:
    inference = config.build(api.Inference, {**how, "temperature": 1.0, "seed": 0})
    trace = api.solve(model, POSED, inference)
    assert trace.method == label
    assert trace.grade is not None
    assert trace.root.calls == (), "a structure made by hand costs nothing itself"
    if num_samples is not None:
        assert sum(map(len, trace.root.spawns)) == num_samples
    assert trace == replace(api.solve(model, POSED, inference), threads=trace.threads)


@pytest.mark.parametrize(
    ("telling", "how", "sentence"),
    [
        (Telling.THREADS, {"method": "pasta"}, "pasta takes one trained on pasta"),
        (Telling.SERIAL, {"method": "multi_agent", "temperature": 1.0}, "hears no agents"),
    ],
)
def test_a_method_is_refused_to_a_model_that_was_not_trained_for_it(
    telling: Telling, how: dict[str, Any], sentence: str
) -> None:
    told = replace(RECIPE.demonstrations, telling=telling)
    model = scripted("<join></join>", replace(RECIPE, demonstrations=told))
    with pytest.raises(ConfigError, match=sentence):
        model.method(config.build(api.Inference, how))


def test_equal_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="at temperature 0 they are all equal"):
        config.build(api.Inference, {"method": "self_consistency"})


def test_a_condition_is_for_models_trained_on_it() -> None:
    how = api.Inference(children=4)
    with pytest.raises(ConfigError, match="not trained to heed a number of children"):
        scripted("<join></join>").method(how)
    told = replace(RECIPE.demonstrations, condition=Condition.CHILDREN)
    model = scripted("<join></join>", replace(RECIPE, demonstrations=told))
    trace = api.solve(model, POSED, how)
    assert trace.root.message.startswith("<children> 4<thread>")
    with pytest.raises(ConfigError, match="a number of children, always: set children, such as 4"):
        model.method()


def test_a_failing_engine_gives_a_trace_without_a_grade() -> None:
    model = scripted(Reply("", error=EngineError("out of order")))
    trace = api.solve(model, POSED)
    assert trace.grade is None
    assert trace.root.end is End.FAILED
    assert api.facts(trace, model.codec)["reason"] == "EngineError: out of order"


def test_facts_are_plain_values() -> None:
    model = scripted("<join> 5 - 3 = 2</join>")
    facts = api.facts(api.solve(model, POSED), model.codec)
    assert facts == json.loads(json.dumps(facts))
    assert facts["expression"] == "5 - 3"
    assert facts["correct"] is False
    assert facts["threads"][0]["text"] == ["<join> 5 - 3 = 2</join>"]


def test_load_refuses_a_folder_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        api.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        api.load(str(tmp_path / "nothing"))


def test_the_address_of_the_embedded_engine_sets_it(trained: Trained) -> None:
    model = api.load(trained.checkpoint, "embedded://?burst=2&kv_precision=int8")
    assert isinstance(model.engine, EmbeddedEngine)
    assert model.engine.config == EngineConfig(burst=2, kv_precision=Precision.INT8)
    assert api.solve(model, POSED).meta["engine"]["burst"] == 2
    assert "engine" not in api.solve(api.load(trained.checkpoint), POSED).meta
    assert "engine" not in api.load(trained.checkpoint, "embedded://").about
    with pytest.raises(ConfigError, match="did you mean 'burst'"):
        api.load(trained.checkpoint, "embedded://?bursts=2")
    with pytest.raises(ConfigError, match="'burst' takes int"):
        api.load(trained.checkpoint, "embedded://?burst")


def test_load_refuses_another_tokenizer(copy: Path) -> None:
    other = api.codec_of(replace(RECIPE, largest_number=41))
    (copy / "tokenizer.json").write_text(other.to_json())
    with pytest.raises(CheckpointError, match="not the one its weights were trained with"):
        api.load(copy)


def test_load_refuses_a_checkpoint_that_no_recipe_made(copy: Path) -> None:
    (copy / "apr.json").unlink()
    with pytest.raises(CheckpointError, match=r"no apr\.json"):
        api.load(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"recipe": {}, "tokenizer": "x"}'])
def test_load_refuses_a_damaged_manifest(copy: Path, text: str) -> None:
    (copy / "apr.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"apr\.json"):
        api.load(copy)


def test_a_run_is_of_one_recipe(trained: Trained) -> None:
    other = replace(RECIPE, seed=1)
    with pytest.raises(ConfigError, match="another recipe"):
        api.train(other, trained.run, trained.data, progress=False)


def test_training_refuses_data_of_another_tokenizer(trained: Trained, tmp_path: Path) -> None:
    other = replace(RECIPE, largest_number=41)
    with pytest.raises(DataError, match="another tokenizer"):
        api.train(other, tmp_path / "run", trained.data, progress=False)
    assert not (tmp_path / "run").exists()


def test_the_weights_follow_from_the_seed(trained: Trained, tmp_path: Path) -> None:
    other = replace(RECIPE, seed=1)
    api.train(other, tmp_path, trained.data, progress=False)
    mine, others = api.load(trained.checkpoint), api.load(tmp_path / "checkpoint")
    weights = [m.engine.model.embed_tokens.weight for m in (mine, others)]  # type: ignore[attr-defined]
    assert not torch.equal(*weights)


def test_training_goes_on_from_a_checkpoint(trained: Trained, tmp_path: Path) -> None:
    start = trained.checkpoint
    frozen = replace(RECIPE.sft, optim=replace(RECIPE.sft.optim, lr=0.0, matrix_lr=0.0))
    recipe = replace(RECIPE, checkpoint=str(start), context=150, sft=frozen)
    losses = api.train(recipe, tmp_path, trained.data, progress=False)
    assert losses == trained.losses
    weights = [load_file(c / "model.safetensors") for c in (start, tmp_path / "checkpoint")]
    assert all(torch.equal(w, weights[1][name]) for name, w in weights[0].items())
    assert api.load(tmp_path / "checkpoint").recipe.context == 150


def test_another_text_takes_over_numbers_and_operators(trained: Trained) -> None:
    paper = replace(RECIPE, demonstrations=replace(RECIPE.demonstrations, text=Text.PAPER))
    learnt, initial = api.load(trained.checkpoint), network_of(paper)
    network = network_of(replace(paper, checkpoint=str(trained.checkpoint)))
    known, own = learnt.codec, codec_of(paper).vocabulary
    for weight in ("embed_tokens.weight", "lm_head.weight"):
        before = learnt.engine.model.state_dict()[weight]  # type: ignore[attr-defined]
        after, new = network.state_dict()[weight], initial.state_dict()[weight]
        for word in ("0", "7", "40", "+", "/", "="):
            (old,) = known.encode(f" {word}")
            assert torch.equal(after[own[word]], before[old])
        for word in ("Moving to Node #", ":["):
            assert torch.equal(after[own[word]], new[own[word]])
    assert torch.equal(network.norm.weight, learnt.engine.model.norm.weight)  # type: ignore[attr-defined]


def test_pairs_of_digits_are_no_numbers_of_another_text(tmp_path: Path) -> None:
    pairs, paper = replace(RECIPE, pairs=True), replace(RECIPE, largest_number=50)
    paper = replace(paper, demonstrations=replace(RECIPE.demonstrations, text=Text.PAPER))
    network, codec = network_of(pairs), codec_of(pairs)
    manifest = {"recipe": config.to_json(pairs), "tokenizer": codec.fingerprint}
    save_checkpoint(network, tmp_path / "pairs", codec.to_json(), manifest)
    own = codec_of(paper).vocabulary
    embedded = network_of(replace(paper, checkpoint=str(tmp_path / "pairs"))).embed_tokens.weight
    assert torch.equal(embedded[own["12"]], network.embed_tokens.weight[codec.vocabulary[" 12"]])
    with pytest.raises(CheckpointError, match="another shape or tokenizer"):
        network_of(replace(paper, checkpoint=str(tmp_path / "pairs"), largest_number=39))


@pytest.mark.parametrize("change", ["network", "largest_number"])
def test_a_checkpoint_of_another_shape_or_tokenizer_is_not_gone_on_from(
    trained: Trained, tmp_path: Path, change: str
) -> None:
    data = tmp_path / "data"
    recipe = replace(RECIPE, checkpoint=str(trained.checkpoint))
    if change == "network":
        recipe, data = replace(recipe, network=replace(RECIPE.network, head_dim=8)), trained.data
    else:
        recipe = replace(recipe, largest_number=39)
        api.make_data(recipe, data, progress=False)
    with pytest.raises(CheckpointError, match="another shape or tokenizer"):
        api.train(recipe, tmp_path / "run", data, progress=False)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_grows_in_depth_and_rotary_base_and_does_not_shrink(
    trained: Trained, tmp_path: Path
) -> None:
    grown = replace(RECIPE.network, num_hidden_layers=3, rope_theta=50_000.0)
    start = replace(RECIPE, checkpoint=str(trained.checkpoint), network=grown)
    network = network_of(start)
    first = api.load(trained.checkpoint).engine.model.layers[0]  # type: ignore[attr-defined]
    assert torch.equal(network.layers[0].mlp.down_proj.weight, first.mlp.down_proj.weight)
    assert not network.layers[2].mlp.down_proj.weight.any()
    manifest = {"recipe": config.to_json(start), "tokenizer": codec_of(start).fingerprint}
    save_checkpoint(network, tmp_path / "grown", codec_of(start).to_json(), manifest)
    start = replace(start, checkpoint=str(tmp_path / "grown"))
    for shape in ({"num_hidden_layers": 2}, {"rope_theta": 10_000.0}):
        smaller = replace(start, network=replace(grown, **shape))
        with pytest.raises(CheckpointError, match="another shape or tokenizer"):
            network_of(smaller)


def test_the_mean_of_checkpoints_is_one_that_knows_of_which(copy: Path, tmp_path: Path) -> None:
    weights = [load_file(copy / "model.safetensors")]
    for n in (1, 2):
        moved = {name: w + n * torch.randn_like(w) for name, w in weights[0].items()}
        shutil.copytree(copy, tmp_path / str(n))
        save_file(moved, tmp_path / str(n) / "model.safetensors", {"format": "pt"})
        weights.append(moved)
    parts = [copy, tmp_path / "1", tmp_path / "2"]
    api.average(parts, tmp_path / "mean")
    mean = load_file(tmp_path / "mean" / "model.safetensors")
    assert mean.keys() == weights[0].keys()
    for name, weight in mean.items():
        expected = torch.stack([each[name] for each in weights]).mean(0)
        torch.testing.assert_close(weight, expected)
    manifest = json.loads((tmp_path / "mean" / "apr.json").read_text())
    assert manifest["mean_of"] == [str(part) for part in parts]
    assert api.load(tmp_path / "mean").recipe == api.load(copy).recipe


def test_no_mean_is_taken_of_what_does_not_belong_together(
    copy: Path, trained: Trained, tmp_path: Path
) -> None:
    manifest = json.loads((copy / "apr.json").read_text())
    manifest["recipe"]["demonstrations"]["telling"] = "serial"
    (copy / "apr.json").write_text(json.dumps(manifest))
    for parts, why in (
        ([trained.checkpoint, copy], "another shape, tokenizer or text"),
        ([trained.checkpoint, apr.DEMO.parent / "nested"], "another shape, tokenizer or text"),
        ([trained.checkpoint], "two checkpoints or more"),
        ([trained.checkpoint, tmp_path / "nothing"], "no checkpoint at"),
    ):
        with pytest.raises(CheckpointError, match=why):
            api.average(parts, tmp_path / "mean")
        assert not (tmp_path / "mean").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary").write_text("mine")
    with pytest.raises(StorageError, match="name another"):
        api.average([trained.checkpoint, trained.checkpoint], tmp_path / "full")


def test_waves_take_their_place(trained: Trained) -> None:
    small = replace(RECIPE, largest_number=9, network=replace(RECIPE.network, hidden_size=16))
    assert replace(small, waves=True)
    with pytest.raises(ConfigError, match="waves take 18 numbers of each embedding"):
        replace(small, waves=True, pairs=True)


def test_words_that_a_checkpoint_lacks_start_as_they_would_without_it(trained: Trained) -> None:
    start = replace(RECIPE, checkpoint=str(trained.checkpoint))
    more = replace(start, pairs=True, largest_number=45)
    known, all_words = (codec_of(r).vocabulary for r in (start, more))
    assert known.keys() < all_words.keys()
    old = network_of(start).state_dict()
    new, fresh = (network_of(r).state_dict() for r in (more, replace(more, checkpoint="")))
    for name in ("embed_tokens.weight", "lm_head.weight"):
        for word, id in all_words.items():
            want = old[name][known[word]] if word in known else fresh[name][id]
            assert torch.equal(new[name][id], want), word
    for name in old.keys() - {"embed_tokens.weight", "lm_head.weight"}:
        assert torch.equal(new[name], old[name])


def test_the_public_names_are_pinned() -> None:
    assert apr.__all__ == [
        "DEMO",
        "AprError",
        "Inference",
        "Limits",
        "Model",
        "Observer",
        "Problem",
        "Recipe",
        "Runtime",
        "Trace",
        "__version__",
        "evaluate",
        "load",
        "pose",
        "read_traces",
        "solve",
        "write_traces",
    ]
    for name in apr.__all__:
        assert getattr(apr, name) is not None
    assert set(apr.__all__) <= set(dir(apr))
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = apr.missing


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, apr; apr.Problem, apr.Trace, apr.Runtime; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
