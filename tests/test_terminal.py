from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live

from apr import terminal
from apr.countdown.diagnose import Diagnosis, Tally
from apr.dialects.tags import Tags
from apr.errors import EngineError
from apr.eval.metrics import summarize
from apr.interfaces import Join
from apr.runtime import Limits, Observer, Runtime
from apr.testing import ByteCodec, Reply, ScriptedEngine
from apr.trace import End, Trace, coordinated
from apr.types import Grade, Sampling
from apr.viewer import page

CODEC = ByteCodec()
NESTED = {
    "<thread>root</thread>": "a<spawn><thread>one</thread><thread>two</thread></spawn>",
    "<thread>one</thread>": "b<spawn><thread>deep</thread></spawn>",
    "<thread>deep</thread>": "<join>found</join>",
    "<thread>two</thread>": "searching<join></join>",
}


def nested(prompt: str) -> str:
    if "<joined>" in prompt:
        return "went on<join>done</join>"
    return NESTED[prompt]


def run(
    script: Callable[[str], str | Reply] | Mapping[str, str | Reply] = nested,
    observer: Observer | None = None,
    limits: Limits | None = None,
    root: str = "<thread>root</thread>",
) -> Trace:
    runtime = Runtime(
        ScriptedEngine(script, CODEC, 100_000), CODEC, Tags(), Sampling(10_000), limits or Limits()
    )
    return asyncio.run(runtime.run(root, observer))


def draw(drawn: RenderableType, width: int = 60, height: int = 25) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, legacy_windows=False)
    console.print(drawn)
    return [line.rstrip() for line in file.getvalue().splitlines()]


def test_a_tree_has_a_line_for_each_thread() -> None:
    assert draw(terminal.tree(run())) == [
        "✓ root   26  done",
        "├── ✓ one   22  done",
        "│   └── ✓ deep    7  found",
        "└── · two   11  nothing",
    ]


def test_a_story_tells_what_was_written_where() -> None:
    assert draw(terminal.story(run(), CODEC), width=80) == [
        "✓ root   26  done",
        "├── a <spawn> 2",
        "├── ✓ one   22  done",
        "│   ├── b <spawn> 1",
        "│   ├── ✓ deep    7  found",
        "│   │   └── <join>found</join>",
        "│   └── went on<join>done</join>",
        "├── · two   11  nothing",
        "│   └── searching<join></join>",
        "└── went on<join>done</join>",
    ]


def test_a_folded_tree_counts_what_found_nothing() -> None:
    assert draw(terminal.tree(run(), fold=True)) == [
        "✓ root   26  done",
        "├── ✓ one   22  done",
        "└── 1 more ended",
    ]


def test_a_story_tells_of_samples_under_a_root_that_wrote_nothing() -> None:
    samples = [run({"<thread>root</thread>": f"<join>{n}</join>"}) for n in range(2)]
    trace = coordinated("root", [samples], End.JOINED, "1", success=True)
    assert draw(terminal.story(trace, CODEC), width=80) == [
        "✓ root    0  1",
        "├── ✓ root    3  0",
        "│   └── <join>0</join>",
        "└── ✓ root    3  1",
        "    └── <join>1</join>",
    ]


def test_a_thread_that_did_not_join_says_why() -> None:
    script = {
        "<thread>root</thread>": "<spawn><thread>a</thread><thread>bb</thread></spawn>",
        "<thread>a</thread>": "<spawn></spawn>",
        "<thread>bb</thread>": "x" * 50,
    }
    resumed = "".join(script["<thread>root</thread>"])
    script[f"<thread>root</thread>{resumed}<joined><thread></thread><thread></thread></joined>"] = (
        "<join></join>"
    )
    lines = draw(terminal.tree(run(script, limits=Limits(context=40))), width=80)
    assert lines == [
        "· root   11  nothing",
        "├── ✗ a     2  malformed: A spawn holds no <thread>.",
        "└── ✗ bb   36  exhausted: The context of 40 tokens is full.",
    ]


def test_lines_are_cut_to_the_width() -> None:
    wide = {"<thread>宽宽宽宽宽宽宽宽宽宽宽宽</thread>": "<join>" + "宽" * 60 + "</join>"}
    trace = run(wide, root="<thread>宽宽宽宽宽宽宽宽宽宽宽宽</thread>")
    for width in (20, 31, 40):
        (line,) = draw(terminal.tree(trace), width)
        assert cell_len(line) <= width
        assert line.endswith("…")


def test_text_is_text_and_no_markup() -> None:
    trace = run({"<thread>root</thread>": "[red]a[/red]<join>[bold]x[/nothing]</join>"})
    assert draw(terminal.tree(trace)) == ["✓ root   31  [bold]x[/nothing]"]
    assert "[red]a[/red]" in draw(terminal.story(trace, CODEC))[1]


class Watched(terminal.Watch):
    """Keeps what would be on the screen after each token."""

    def __init__(self, width: int = 40, height: int = 25) -> None:
        super().__init__(CODEC)
        self.size = width, height
        self.screens: list[list[str]] = []

    def on_tokens(self, path: tuple[int, ...], ids: Sequence[int]) -> None:
        super().on_tokens(path, ids)
        self.screens.append(draw(self, *self.size))


def still(line: str) -> str:
    """``line`` with its spinner stopped."""
    return re.sub("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]", "*", line)


def test_the_newest_text_stands_at_the_right_end() -> None:
    text = " ".join(map(str, range(100)))
    watch = Watched(width=30)
    run({"<thread>root</thread>": text + "<join></join>"}, watch)
    assert still(watch.screens[4][0]) == "* root    5  0 1 2"
    assert still(watch.screens[len(text) - 1][0]) == "* root  289  94 95 96 97 98 99"
    assert all(cell_len(line) <= 30 for screen in watch.screens for line in screen)


def test_a_parent_waits_for_its_children() -> None:
    watch = Watched()
    run(observer=watch)
    middle = next(s for s in watch.screens if any("* deep" in still(line) for line in s))
    assert [still(line).split("  ")[0].rstrip() for line in middle[:2]] == [
        "⋯ root",
        "├── ⋯ one",
    ]
    assert still(middle[2]).startswith("│   └── * deep")
    assert still(middle[3]).startswith("└── * two")
    assert draw(watch) == draw(terminal.tree(run()))


def test_a_tree_taller_than_the_screen_folds_what_has_ended() -> None:
    def script(prompt: str) -> str:
        if "<joined>" in prompt:
            return "<join></join>"
        if "root" in prompt:
            return f"<spawn>{''.join(f'<thread>{i}</thread>' for i in range(12))}</spawn>"
        number = int(re.findall(r"[0-9]+", prompt)[0])
        return "x" * number + ("<join>y</join>" if number == 3 else "<join></join>")

    low, high = Watched(height=8), Watched(height=13)
    run(script, low)
    run(script, high)
    resumed = [s for s in low.screens if still(s[0]).startswith("*")][-1]
    assert resumed[1:] == ["├── ✓ 3     6  y", "└── 11 more ended"]
    assert not any("more ended" in line for screen in high.screens for line in screen)


def test_a_live_view_takes_no_message_for_a_success() -> None:
    watch = terminal.Watch(CODEC)
    watch.on_thread((), "root")
    for number, success in enumerate([True, False]):
        watch.on_thread((number,), str(number))
        watch.on_end((number,), End.JOINED, Join("a thought", success))
    assert draw(watch)[1:] == ["├── ✓ 0    0  a thought", "└── · 1    0  a thought"]


def test_a_live_view_shows_nothing_before_the_run_begins() -> None:
    assert draw(terminal.Watch(CODEC)) == []


def test_rich_can_draw_while_the_run_goes_on() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=10)
    watch = terminal.Watch(CODEC)
    slow = {prompt: Reply(reply, delay=0.001) for prompt, reply in NESTED.items()}
    with Live(watch, console=console, refresh_per_second=200, transient=True):
        run(lambda prompt: slow.get(prompt) or nested(prompt), watch)
    assert watch.branches[()].end is End.JOINED


def test_verdicts() -> None:
    trace = run({"<thread>root</thread>": "<join>8</join>"})
    cost = "3 tokens, 3 in sequence; 1 thread; longest context 9; 0.00 s"
    cases = {
        "✓ 3 + 5 = 8": replace(trace, grade=Grade(True, "correct")),
        "✗ 3 + 5 = 8: It makes 8, not 9.": replace(trace, grade=Grade(False, "It makes 8, not 9.")),
        "  3 + 5 = 8, not graded": trace,
        "! EngineError: out of order": replace(trace, error="EngineError: out of order"),
    }
    for line, graded in cases.items():
        first, second = draw(terminal.verdict(graded, "3 + 5 = 8"), width=100)
        assert first == line.rstrip()
        assert re.fullmatch(re.escape(cost).replace(r"0\.00", r"\d\.\d\d"), second.strip())


def test_verdict_without_an_answer() -> None:
    trace = replace(run(), grade=Grade(False, "No solution is claimed."))
    assert draw(terminal.verdict(trace, None), 100)[0] == "✗ No solution is claimed."


def test_an_answer_of_several_lines_is_told_on_one() -> None:
    assert draw(terminal.verdict(run(), "\n3 +\n 5 "), 100)[0] == "  3 + 5, not graded"


def test_scores_fit_a_terminal() -> None:
    right = replace(run(), grade=Grade(True, "correct"))
    wrong = replace(right, grade=Grade(False, "no"))
    failed = run({"<thread>root</thread>": Reply("", error=EngineError("x"))})
    rows = [
        terminal.Row("a-model-of-a-long-name", "serial", 128, summarize([right, wrong] * 250)),
        terminal.Row("b", "apr", None, summarize([right, failed])),
    ]
    lines = draw(terminal.scores(rows), width=80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert re.search(r"a-model-of\S* serial 500 50.0% 45.6-54.4 66.0 55.0 3.0 42/128", text)
    assert "b apr 1 100.0% 20.7-100.0 66.0 55.0 3.0 42/?" in text
    assert "1 runs that the engine failed are left out" in text
    assert rows[0].to_json()["accuracy"] == 0.5


def folded(lines: list[str], start: int, end: int) -> str:
    """What stands in one column of a table, its folds undone."""
    return "".join(line[start:end].strip() for line in lines)


def test_no_column_is_cut_in_a_narrow_terminal() -> None:
    right = replace(run(), grade=Grade(True, "correct"))
    name = "threads-by-number-after-reinforcement-learning"
    method = "best of 8 apr, logprob, children 6, T 1, seed 0, alone"
    summary = summarize([right] * 1000)._replace(
        total_tokens=12_345.6, sequential_tokens=2_345.6, num_children=312.4, longest_context=21_034
    )
    lines = draw(terminal.scores([terminal.Row(name, method, 32_768, summary)]), width=80)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    row = next(i for i, line in enumerate(lines) if "─" in line) + 1
    assert lines[row].endswith("1000 100.0% 99.6-100.0 12,346    2,346      312 21034/32768")
    heads = " ".join(" ".join(lines[: row - 1]).split())
    assert heads == "in model method n accuracy, 95 % tokens sequence children context"
    start = lines[row - 2].index("method")
    assert folded(lines[row:], 0, start) == name
    end = lines[row].index("1000")
    assert folded(lines[row:], start, end).replace(" ", "") == method.replace(" ", "")


def test_wrong_steps_fit_a_narrow_terminal() -> None:
    found = Diagnosis(problems=Tally(12_345, 0))
    for tally in (*found.steps.values(), found.verdicts, found.asked):
        tally.num, tally.num_wrong = 12_345, 12_345
    rows = {kind: found.shares() for kind in ("all", "4 numbers, largest 76 to 100")}
    lines = draw(terminal.columns(rows), width=80)
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    heads = " ".join(" ".join(lines[:2]).split())
    assert heads == "wrong wrong wrong wrong wrong wrongly n solved + - * / verdicts asked"
    shares = "12345 100.0% 100.00% 100.00% 100.00% 100.00%  100.00% 100.00%"
    assert [line.endswith(shares) for line in lines[3:]] == [True, True, False]
    assert folded(lines[4:], 0, lines[3].index("12345")) == "4 numbers, largest76 to 100"


def test_what_a_model_writes_is_drawn_and_not_obeyed() -> None:
    trick = "\x1b[2J\x1b]0;owned\x07 \x9b31m red\u202e \ud83d"
    trace = run({"<thread>root</thread>": "written<join>told</join>"})
    root = replace(trace.root, join=trick, notes=(trick,), message=trick)
    ends = [replace(trace, threads=(replace(root, end=end),)) for end in End]
    for bad in ends:
        drawn = [terminal.tree(bad), terminal.story(bad, _Trick(trick))]
        reason = replace(bad, error=None, grade=Grade(False, trick))
        drawn += [
            terminal.verdict(replace(bad, error=trick), None),
            terminal.verdict(reason, trick),
        ]
        for one in drawn:
            text = "\n".join(draw(one, width=200))
            assert "owned" in text
            assert all(c.isprintable() for c in text.replace("\n", ""))


class _Trick(ByteCodec):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def decode(self, ids: Sequence[int]) -> str:
        return self.text


def test_a_deep_tree_can_be_drawn() -> None:
    trace = run({"<thread>root</thread>": "written<join>told</join>"})
    depth = 1_500
    threads = [
        replace(trace.root, index=i, parent=i - 1 if i else None, spawns=((i + 1,),))
        for i in range(depth)
    ]
    last = replace(trace.root, index=depth, parent=depth - 1)
    deep = replace(trace, threads=(*threads, last))
    assert terminal.tree(deep)
    assert terminal.story(deep, CODEC)
    drawn = page(deep, CODEC.decode)
    assert drawn.count("<details") == drawn.count("</details>") == depth + 1
