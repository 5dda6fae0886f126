"""Every recipe makes data, trains and solves, at a size that takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from apr import api, config
from apr.countdown.problem import Split

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
SMALL = ["count=30", "held_out=10", "sft.steps=2", "sft.eval_batches=1", "sft.optim.warmup=1"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_runs_from_nothing_to_a_trace(path: Path, tmp_path: Path) -> None:
    recipe = config.load(path, api.Recipe, SMALL)
    made = api.make_data(recipe, tmp_path / "data", progress=False)
    assert made[Split.TRAIN]["tally"]["longest"] < recipe.context, "nothing is cut"
    api.train(recipe, tmp_path / "run", tmp_path / "data", progress=False)
    model = api.load(tmp_path / "run" / "checkpoint")
    assert model.recipe == recipe
    (trace,) = api.evaluate(model, api.pose(recipe, Split.TEST, 1))
    assert trace.grade is not None
