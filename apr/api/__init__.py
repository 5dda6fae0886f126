"""The composition root: recipes, models, and what one does with them. All below meets here."""

from apr.api.evaluation import (
    GridEntry,
    GridModel,
    GridRecipe,
    plan_grid,
    run_grid,
)
from apr.api.flags import flags_of, inference_of
from apr.api.model import Model, evaluate, explain, facts, load, pose, solve
from apr.api.recipe import Inference, MethodName, Network, Recipe, RLRecipe, Sampled
from apr.api.reinforce import reinforce
from apr.api.training import average, check_start, codec_of, export, make_data, train

__all__ = [
    "GridEntry",
    "GridModel",
    "GridRecipe",
    "Inference",
    "MethodName",
    "Model",
    "Network",
    "RLRecipe",
    "Recipe",
    "Sampled",
    "average",
    "check_start",
    "codec_of",
    "evaluate",
    "explain",
    "export",
    "facts",
    "flags_of",
    "inference_of",
    "load",
    "make_data",
    "plan_grid",
    "pose",
    "reinforce",
    "run_grid",
    "solve",
    "train",
]
