from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.countdown import paper
from apr.countdown.paper import Paper
from apr.countdown.problem import Problem
from apr.data.tokenizer import HFCodec, build_tokenizer
from apr.interfaces import Dialect, Join, Malformed, Rewrite, Spawn
from apr.runtime import Limits, Runtime
from apr.testing import ByteCodec, ScriptedEngine
from apr.trace import End, Trace
from apr.types import Sampling

DIALECT: Dialect = Paper()
CODEC = ByteCodec(paper.SPECIALS)

PROMPT = "Moving to Node #0\nCurrent State: 24:[9, 8, 4, 3], Operations: []"
LISTED = """
Exploring Operation: 9-8=1, Resulting Numbers: [4, 3, 1]
Generated Node #0,0: 24:[4, 3, 1] Operation: 9-8=1
Exploring Operation: 9+3=12, Resulting Numbers: [8, 4, 12]
Generated Node #0,1: 24:[8, 4, 12] Operation: 9+3=12
"""
SPAWN = """\
<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0
<Start Sub Search 1 at level 1> Moving to Node #0,1
<End Calling Sub Searches>"""
CHILDREN = (
    "Moving to Node #0,0\nCurrent State: 24:[4, 3, 1], Operations: ['9-8=1']",
    "Moving to Node #0,1\nCurrent State: 24:[8, 4, 12], Operations: ['9+3=12']",
)
CHILD_PATH = """\
Moving to Node #0,1
Current State: 24:[8, 4, 12], Operations: ['9+3=12']
Exploring Operation: 8/4=2, Resulting Numbers: [12, 2]
Generated Node #0,1,0: 24:[12, 2] Operation: 8/4=2
Moving to Node #0,1,0
Current State: 24:[12, 2], Operations: ['9+3=12', '8/4=2']
Exploring Operation: 12*2=24, Resulting Numbers: [24]
24,24 equal: Goal Reached"""
CHILD_HIT = f"""
Exploring Operation: 8/4=2, Resulting Numbers: [12, 2]
Generated Node #0,1,0: 24:[12, 2] Operation: 8/4=2
Moving to Node #0,1,0
Current State: 24:[12, 2], Operations: ['9+3=12', '8/4=2']
Exploring Operation: 12-2=10, Resulting Numbers: [10]
10,24 unequal: No Solution
Exploring Operation: 12*2=24, Resulting Numbers: [24]
24,24 equal: Goal Reached
{CHILD_PATH}
"""
CHILD_MISS = """
Exploring Operation: 4+3=7, Resulting Numbers: [1, 7]
Generated Node #0,0,0: 24:[1, 7] Operation: 4+3=7
Moving to Node #0,0,0
Current State: 24:[1, 7], Operations: ['9-8=1', '4+3=7']
Exploring Operation: 7-1=6, Resulting Numbers: [6]
6,24 unequal: No Solution
No solution found.
"""
RESULTS = f"""\
<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{CHILD_PATH}
<End Sub Searches>
"""
ROOT_PATH = f"""\
Moving to Node #0
Current State: 24:[9, 8, 4, 3], Operations: []
Exploring Operation: 9+3=12, Resulting Numbers: [8, 4, 12]
Generated Node #0,1: 24:[8, 4, 12] Operation: 9+3=12
{CHILD_PATH}"""
ROOT_HIT = f"24,24 equal: Goal Reached\n{ROOT_PATH}\n"

NONE = Join("", False)
FOUND = Join(CHILD_PATH, True)


def run(script: dict[str, str], prompt: str = PROMPT, limits: Limits | None = None) -> Trace:
    engine = ScriptedEngine(script, CODEC, 100_000)
    runtime = Runtime(engine, CODEC, DIALECT, Sampling(100_000), limits or Limits())
    return asyncio.run(runtime.run(prompt))


def spawn_of(nodes: Sequence[str]) -> str:
    calls = [
        f"<Start Sub Search {i} at level 1> Moving to Node #{n}\n" for i, n in enumerate(nodes)
    ]
    return f"<Calling Sub Searches>\n{''.join(calls)}<End Calling Sub Searches>"


def test_text_shaped_like_an_official_trace_runs() -> None:
    trace = run(
        {
            PROMPT: LISTED + SPAWN,
            CHILDREN[0]: CHILD_MISS,
            CHILDREN[1]: CHILD_HIT,
            PROMPT + LISTED + RESULTS: ROOT_HIT,
        }
    )
    root, miss, hit = trace.threads
    assert [t.end for t in trace.threads] == [End.JOINED] * 3
    assert (root.join, miss.join, hit.join) == (ROOT_PATH, "", CHILD_PATH)
    assert (root.success, miss.success, hit.success) == (True, False, True)
    assert (miss.message, hit.message) == CHILDREN
    assert len(trace.training_sequences()) == 4


def test_a_spawn_gives_each_child_its_state() -> None:
    assert DIALECT.read(PROMPT, LISTED + SPAWN) == Spawn(CHILDREN)
    assert DIALECT.child_prompt(CHILDREN[0]) == CHILDREN[0]


def test_what_follows_a_spawn_is_not_read() -> None:
    sampled = LISTED + SPAWN + "\n<Sub Searches>\nMoving"
    assert DIALECT.read(PROMPT, sampled) == Spawn(CHILDREN)
    assert DIALECT.resume(PROMPT, sampled, (NONE, FOUND)) == Rewrite(PROMPT + LISTED + RESULTS)


def test_a_state_that_was_moved_to_can_be_named_as_well_as_one_generated() -> None:
    text = (
        "\nExploring Operation: 9-8=1, Resulting Numbers: [4, 3, 1]\n"
        "Generated Node #0,0: 24:[4, 3, 1] Operation: 9-8=1\n"
        "Moving to Node #0,0\nCurrent State: 24:[4, 3, 1], Operations: ['9-8=1']\n"
        "Exploring Operation: 4+3=7, Resulting Numbers: [1, 7]\n"
        "Generated Node #0,0,0: 24:[1, 7] Operation: 4+3=7\n"
    )
    assert DIALECT.read(PROMPT, text + spawn_of(["0,0,0", "0", "0,0"])) == Spawn(
        (
            "Moving to Node #0,0,0\nCurrent State: 24:[1, 7], Operations: ['9-8=1', '4+3=7']",
            PROMPT,
            CHILDREN[0],
        )
    )


def test_resume_replaces_the_block_where_it_stands() -> None:
    # The same block stands in the prompt, where nothing may be touched.
    prompt = f"{SPAWN}\n{PROMPT}"
    resumed = DIALECT.resume(prompt, LISTED + SPAWN, (NONE, FOUND))
    assert resumed == Rewrite(prompt + LISTED + RESULTS)


@pytest.mark.parametrize("failure", [NONE, Malformed("The context is full.")])
def test_every_failure_is_told_as_no_solution(failure: Join | Malformed) -> None:
    assert DIALECT.resume(PROMPT, LISTED + SPAWN, (failure, FOUND)) == Rewrite(
        PROMPT + LISTED + RESULTS
    )


def test_an_unknown_node_gets_no_child_and_no_solution() -> None:
    sampled = LISTED + spawn_of(["7,7", "0,1", "0,0,0"])
    assert DIALECT.read(PROMPT, sampled) == Spawn(CHILDREN[1:])
    resumed = DIALECT.resume(PROMPT, sampled, (FOUND,))
    assert isinstance(resumed, Rewrite)
    told = resumed.text.removeprefix(PROMPT + LISTED).splitlines()
    assert told[:3] == [
        "<Sub Searches>",
        "<No Solution in Sub Search 0 at level 1 at Node #7,7>",
        "<Goal Reached in Sub Search 1 at level 1 at Node #0,1>",
    ]
    assert told[-2:] == [
        "<No Solution in Sub Search 2 at level 1 at Node #0,0,0>",
        "<End Sub Searches>",
    ]


def test_a_spawn_of_unknown_nodes_alone_runs_on() -> None:
    sampled = LISTED + spawn_of(["4"])
    results = (
        "<Sub Searches>\n<No Solution in Sub Search 0 at level 1 at Node #4>\n<End Sub Searches>\n"
    )
    trace = run({PROMPT: sampled, PROMPT + LISTED + results: "No solution found.\n"})
    assert trace.num_children == 0
    assert trace.root.end is End.JOINED
    assert not trace.root.success


def test_identical_children_are_two_children() -> None:
    sampled = LISTED + spawn_of(["0,1", "0,1"])
    assert DIALECT.read(PROMPT, sampled) == Spawn((CHILDREN[1], CHILDREN[1]))
    resumed = DIALECT.resume(PROMPT, sampled, (NONE, FOUND))
    assert isinstance(resumed, Rewrite)
    assert "<No Solution in Sub Search 0 at level 1 at Node #0,1>\n" in resumed.text
    assert "<Goal Reached in Sub Search 1 at level 1 at Node #0,1>\n" in resumed.text


def test_children_that_were_refused_are_told_as_no_solution() -> None:
    refused = (
        f"{PROMPT}{LISTED}<Sub Searches>\n"
        "<No Solution in Sub Search 0 at level 1 at Node #0,0>\n"
        "<No Solution in Sub Search 1 at level 1 at Node #0,1>\n<End Sub Searches>\n"
    )
    script = {PROMPT: LISTED + SPAWN, refused: "No solution found.\n"}
    trace = run(script, limits=Limits(depth=0))
    assert trace.num_children == 0
    assert len(trace.root.calls) == 2
    assert "Refused 2 of 2" in trace.root.notes[0]


def test_a_thread_that_writes_results_itself_is_made_to_spawn() -> None:
    opened = PROMPT + LISTED + paper.CALL
    rest = SPAWN.removeprefix(paper.CALL)
    trace = run(
        {
            PROMPT: LISTED + paper.RESULTS,
            opened: rest,
            CHILDREN[0]: CHILD_MISS,
            CHILDREN[1]: CHILD_HIT,
            PROMPT + LISTED + RESULTS: ROOT_HIT,
        }
    )
    assert trace.root.join == ROOT_PATH
    assert trace.root.spawns == ((), (1, 2))


@pytest.mark.parametrize(
    ("sampled", "reason"),
    [
        ("\nSo: <End Calling Sub Searches>", "not opened"),
        (LISTED + "<Calling Sub Searches>\n<End Calling Sub Searches>", "names no node"),
        (LISTED + SPAWN.replace("Moving", "moving", 1), "names no node"),
        (LISTED + SPAWN.replace("#0,0", "#", 1), "names no node"),
    ],
)
def test_a_malformed_spawn_is_data(sampled: str, reason: str) -> None:
    operation = DIALECT.read(PROMPT, sampled)
    assert isinstance(operation, Malformed)
    assert reason in operation.reason


def test_a_path_is_what_follows_the_last_goal_but_one() -> None:
    assert DIALECT.read(CHILDREN[1], CHILD_HIT) == FOUND
    # Serially the searches around it are closed after the path.
    closed = f"{CHILD_HIT}Exit Sub Search at level 2\nExit Sub Search at level 1\n"
    assert DIALECT.read(CHILDREN[1], closed) == FOUND


@pytest.mark.parametrize("sampled", ["", CHILD_MISS, "\n24,24 equal: Goal Reached\n", "chatter"])
def test_anything_else_joins_with_nothing(sampled: str) -> None:
    assert DIALECT.read(PROMPT, sampled) == NONE


def test_a_goal_told_to_the_prompt_is_not_one_reached() -> None:
    prompt = PROMPT + LISTED + RESULTS
    assert DIALECT.read(prompt, "24,24 equal: Goal Reached\n") == NONE


def test_a_path_that_holds_an_operation_is_malformed() -> None:
    sampled = CHILD_HIT.replace("Moving to Node #0,1,0", "<Sub Search>")
    assert isinstance(DIALECT.read(CHILDREN[1], sampled), Malformed)


def test_a_window_reaches_the_children_and_a_number_of_children_does_not() -> None:
    windowed = DIALECT.read(f"Token Budget: 2048 {PROMPT}", LISTED + SPAWN)
    assert windowed == Spawn(tuple(f"Token Budget: 2048 {c}" for c in CHILDREN))
    counted = DIALECT.read(f"Sub Call Budget: 10 {PROMPT}", LISTED + SPAWN)
    assert counted == Spawn(CHILDREN)


def test_prompts_are_those_of_the_release() -> None:
    problem = Problem((5, 27, 79, 50), 62)
    state = "Current State: 62:[79, 50, 27, 5], Operations: []"
    assert "".join(paper.prompt(problem)) == f"Moving to Node #0\n{state}"
    assert "".join(paper.prompt(problem, serial=True)) == state
    budget = "Sub Call Budget: 10 "
    assert "".join(paper.prompt(problem, children=10)) == f"{budget}Moving to Node #0\n{state}"
    windowed = paper.prompt(problem, serial=True, window=4096)
    assert "".join(windowed) == f"Token Budget: 4096 {state}"


def test_levels_are_told_as_they_were_asked() -> None:
    sampled = LISTED + SPAWN.replace("level 1", "level 3")
    resumed = DIALECT.resume(PROMPT, sampled, (NONE, FOUND))
    assert resumed == Rewrite(PROMPT + LISTED + RESULTS.replace("level 1", "level 3"))


def test_the_text_survives_its_tokenizer() -> None:
    codec = HFCodec(build_tokenizer(paper.words(99), paper.SPECIALS, paper.PATTERN))
    text = PROMPT + LISTED + SPAWN + RESULTS + ROOT_HIT + CHILD_MISS + "¿777?"
    assert codec.decode(codec.encode(text)) == text
    assert [codec.decode([i]) for i in codec.encode("24,24 equal: Goal Reached\n")] == [
        *("24", ",", "24", " equal: Goal Reached", "\n")
    ]
    for operation in paper.SPECIALS:
        assert codec.token_id(operation) is not None


LINES = [
    *(PROMPT, LISTED, SPAWN, RESULTS, CHILD_PATH, CHILD_HIT, CHILD_MISS, ROOT_HIT),
    *(paper.CALL, paper.CALLED, paper.RESULTS, paper.RESULTED, "Token Budget: 512 ", "\n", "#0,0"),
    *("<Start Sub Search 0 at level 1> Moving to Node #0,0,0\n", "Generated Node #0,0,0: 1:[] "),
]
TEXT = st.one_of(st.text(), st.lists(st.sampled_from(LINES), max_size=8).map("".join))


@given(TEXT, TEXT)
def test_no_text_raises(prompt: str, sampled: str) -> None:
    operation = DIALECT.read(prompt, sampled)
    if isinstance(operation, Spawn):
        joins: list[Join | Malformed] = [FOUND] * len(operation.messages)
        assert isinstance(DIALECT.resume(prompt, sampled, joins), Rewrite)
