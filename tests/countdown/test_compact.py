from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apr.countdown import compact
from apr.countdown.compact import MAX_HEARD, Compact, CompactNumbered, CompactPasta, CompactWeighed
from apr.countdown.problem import Problem, Step
from apr.countdown.solver import Node
from apr.data.tokenizer import EOS, PAD, HFCodec, build_tokenizer
from apr.dialects.tags import TAGS
from apr.interfaces import Append, Join, Malformed, Spawn

COMPACT, PASTA, WEIGHED = Compact(), CompactPasta(), CompactWeighed()
NUMBERED = CompactNumbered()
ROOT = "<thread> 24 : 9 5 3</thread>"
CHILD = "<thread> 24 : 9 , 5 + 3</thread>"
SPAWN = f"<spawn>{CHILD}<thread> 24 : 9 , 5 * 3</thread></spawn>"
HIT = " = 8 : 9 8 9 + 8 = 17 x 9 * 8 = 72 !<join> 5 + 3 = 8 , 9 * 8 = 72</join>"
MISS = " = 8 : 9 8 9 + 8 = 17 x<join></join>"
PATH = Join(" 5 + 3 = 8 , 9 * 8 = 72", True)
NOTHING = Join("", False)


def test_a_prompt_is_target_and_numbers_largest_first() -> None:
    problem = Problem((3, 9, 5), 24)
    assert "".join(compact.prompt(problem)) == ROOT
    assert "".join(compact.prompt(problem, children=6)) == f"<children> 6{ROOT}"
    assert "".join(compact.prompt(problem, window=512)) == f"<window> 512{ROOT}"


def test_a_message_leaves_its_last_result_to_the_child() -> None:
    first = Step(5, "+", 3, 8)
    node = Node((9, 8), (first,))
    assert "".join(compact.thread(compact.message(24, node))) == CHILD
    second = Node((72,), (first, Step(9, "*", 8, 72)))
    assert "".join(compact.message(24, second)) == " 24 : , 5 + 3 = 8 , 9 * 8"


def test_reads_spawn_and_join() -> None:
    assert COMPACT.read(ROOT, SPAWN) == Spawn((" 24 : 9 , 5 + 3", " 24 : 9 , 5 * 3"))
    assert COMPACT.child_prompt(" 24 : 9 , 5 + 3") == CHILD
    assert COMPACT.read(CHILD, HIT) == PATH
    assert COMPACT.read(CHILD, MISS) == NOTHING


def test_the_parent_hears_the_first_path_alone() -> None:
    other = Join(" 9 * 8 = 72", True)
    told = "<joined><thread> 5 + 3 = 8 , 9 * 8 = 72</thread></joined>"
    assert COMPACT.resume(ROOT, SPAWN, (NOTHING, PATH, other)) == Append(told)
    assert COMPACT.resume(ROOT, SPAWN, (Malformed("cut"), NOTHING)) == Append("<joined></joined>")


def test_pasta_returns_all_that_a_child_wrote() -> None:
    text = HIT.replace("<join>", " ,").removesuffix("</join>")
    assert PASTA.read(CHILD, HIT) == Join(text, True)
    assert PASTA.read(CHILD, MISS) == Join(" = 8 : 9 8 9 + 8 = 17 x ,", False)
    assert PASTA.read(ROOT, SPAWN) == COMPACT.read(ROOT, SPAWN)


def test_pasta_returns_all_that_a_child_wrote_that_compares() -> None:
    child = "<thread> 60 : 75 50 40 =</thread>"
    text = " : 75 50 40 60 75 * 50 = 3750 : 60 * 40 = 2400 x"
    assert PASTA.read(child, f"{text}<join></join>") == Join(f"{text} ,", False)


@pytest.mark.parametrize("dialect", [WEIGHED, NUMBERED])
def test_no_more_is_heard_than_a_few_paths(dialect: Compact) -> None:
    joins = [NOTHING, *(Join(f" 9 * {n} = {9 * n}", True) for n in range(20))]
    heard = dialect.resume(ROOT, SPAWN, joins).text
    assert heard == dialect.resume(ROOT, SPAWN, joins[: MAX_HEARD + 1]).text
    assert heard.count("<thread>") == MAX_HEARD


def test_pasta_returns_what_a_child_wrote_before_it_spawned_too() -> None:
    spawned = " = 8 : 9 8<spawn><thread> 24 : , 9 + 8</thread></spawn>"
    heard = "<joined><thread> = 17 x ,</thread></joined>"
    operation = PASTA.read(CHILD + spawned + heard, "<join></join>")
    assert operation == Join(f"{spawned}{heard} ,", False)


def test_pasta_leaves_the_root_its_path() -> None:
    heard = "<joined><thread> = 8 : 9 8 ,</thread></joined>"
    sampled = "<join> 5 + 3 = 8 , 9 * 8 = 72</join>"
    for prompt in (ROOT, f"<children> 6{ROOT}", ROOT + SPAWN + heard):
        assert PASTA.read(prompt, sampled) == PATH


def test_pasta_tells_of_every_child() -> None:
    joins = (Join(" = 8 x ,", False), Malformed("The context is full."), Join(" = 9 ! , 9", True))
    assert PASTA.resume(ROOT, SPAWN, joins) == Append(
        "<joined><thread> = 8 x ,</thread><thread></thread><thread> = 9 ! , 9</thread></joined>"
    )


def test_operations_are_single_tokens() -> None:
    codec = HFCodec(build_tokenizer(compact.words(99), compact.SPECIALS, compact.PATTERN))
    for tag in (*TAGS, EOS, PAD):
        assert codec.token_id(tag) is not None
    text = ROOT + SPAWN + HIT + " 12345 ¿x?\n"
    assert codec.decode(codec.encode(text)) == text
    pieces = [codec.decode([i]) for i in codec.encode(" 12 + 99 = 111")]
    assert pieces == [" 12", " +", " 99", " =", " ", "1", "1", "1"]


def test_numbers_beyond_the_largest_are_spelled_in_pairs() -> None:
    words = compact.words(300) + compact.pairs()
    codec = HFCodec(build_tokenizer(words, compact.SPECIALS, compact.pairs_pattern(300)))

    def pieces(text: str) -> list[str]:
        ids = codec.encode(text)
        assert codec.decode(ids) == text
        assert codec.encode_pieces([text]) == list(ids)
        return [codec.decode([i]) for i in ids]

    assert pieces(" 98 * 99 = 9702 :") == [" 98", " *", " 99", " =", " 97", "02", " :"]
    for n in range(12_000):
        text = str(n)
        cut = len(text) % 2 or 2
        want = (
            [text]
            if n <= 300
            else [text[:cut], *(text[i : i + 2] for i in range(cut, len(text), 2))]
        )
        assert pieces(f" {n}") == [f" {want[0]}", *want[1:]]
    assert pieces("9 97 3001")[-4:] == ["9", " 97", " 30", "01"]


def test_numbered_a_thread_returns_what_it_heard_by_its_number() -> None:
    heard = NUMBERED.resume(ROOT, SPAWN, (PATH, NOTHING, Join(" 9 * 8 = 72", True)))
    assert heard.text == (
        f"<joined><thread>{PATH.message} : 1</thread><thread> 9 * 8 = 72 : 2</thread></joined>"
    )
    prompt = ROOT + SPAWN + heard.text
    assert NUMBERED.read(prompt, "<join> : 1</join>") == PATH
    assert NUMBERED.read(prompt, "<join> : 2</join>") == Join(" 9 * 8 = 72", True)
    assert NUMBERED.read(prompt, "<join> 9 * 8 = 72</join>") == Join(" 9 * 8 = 72", True)
    assert NUMBERED.read(prompt, "<join></join>") == NOTHING
    for unheard in (" : 3", " : 0", " :", " : 1 1"):
        assert isinstance(NUMBERED.read(prompt, f"<join>{unheard}</join>"), Malformed)
    assert isinstance(NUMBERED.read(ROOT, "<join> : 1</join>"), Malformed)
    posed = "<thread> 17 : 5 4 3</thread>"
    assert isinstance(NUMBERED.read(posed, "<join> : 5 4 3</join>"), Malformed), "nothing was heard"


@pytest.mark.parametrize("dialect", [COMPACT, PASTA, WEIGHED, NUMBERED])
@given(st.data())
def test_no_text_raises(dialect: Compact, data: st.DataObject) -> None:
    parts = st.sampled_from([ROOT, CHILD, SPAWN, HIT, MISS, *TAGS, " ,", " 5"])
    text = st.lists(parts, max_size=6).map("".join)
    prompt, sampled = data.draw(text), data.draw(text)
    assert isinstance(dialect.read(prompt, sampled), Spawn | Join | Malformed)
    assert isinstance(dialect.resume(prompt, sampled, (PATH, NOTHING)), Append)
