"""Every recipe makes data, trains and solves, at a size that takes seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from apr import DEMO, api, config
from apr.countdown.demonstrate import Condition
from apr.countdown.problem import Split
from apr.train.log import read_metrics

FOLDER = Path(__file__).parents[1] / "recipes"
RL = sorted(FOLDER.glob("grpo*.toml"))
GRIDS = sorted(FOLDER.glob("grid*.toml"))
SFT = sorted(set(FOLDER.glob("*.toml")) - set(RL) - set(GRIDS))
SMALL = ["count=30", "held_out=10", "sft.steps=2", "sft.rows=1", "sft.eval_batches=1"]
SMALL += ["sft.optim.warmup=1", "network.num_hidden_layers=1"]


@pytest.mark.parametrize("path", SFT, ids=lambda p: p.stem)
def test_a_recipe_runs_from_nothing_to_a_trace(path: Path, tmp_path: Path) -> None:
    recipe = config.load(path, api.Recipe, [*SMALL, 'checkpoint=""'])
    made = api.make_data(recipe, tmp_path / "data", progress=False)
    assert made[Split.TRAIN]["tally"]["longest"] < recipe.context, "nothing is cut"
    api.train(recipe, tmp_path / "run", tmp_path / "data", progress=False)
    model = api.load(tmp_path / "run" / "checkpoint")
    assert model.recipe == recipe
    told = recipe.demonstrations.condition is Condition.CHILDREN
    how = api.Inference(children=2 if told else None)
    (trace,) = api.evaluate(model, api.pose(recipe, Split.TEST, 1), how)
    assert trace.grade is not None


@pytest.mark.parametrize("path", RL, ids=lambda p: p.stem)
def test_a_recipe_trains_a_checkpoint_further(path: Path, tmp_path: Path) -> None:
    """A packaged checkpoint stands for the one that the recipe names, which has to be trained."""
    small = ["grpo.steps=1", "grpo.prompts=1", "grpo.group=2", "validation=1"]
    recipe = config.load(path, api.RLRecipe, small)
    start = DEMO if recipe.sampling.children is None else DEMO.parent / "rounds"
    recipe = replace(recipe, checkpoint=str(start))
    api.reinforce(recipe, tmp_path, progress=False)
    assert [m["step"] for m in read_metrics(tmp_path)] == [0, 1]
    assert api.load(tmp_path / "checkpoint").recipe == api.load(start).recipe


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_a_grid_asks_for_models_that_it_has(path: Path) -> None:
    grid = config.load(path, api.GridRecipe)
    named = {model.name for model in grid.models}
    assert {name for entry in grid.entries for name in entry.models} <= named
    for model in grid.models:
        if model.checkpoint.startswith("apr/"):
            assert (FOLDER.parent / model.checkpoint).is_dir()
