"""Recipes' YAML: 1.2 scalars, one document of plain data, and errors that say where."""

import math
import random
import re
import subprocess
import sys
import time

import pytest

from invem.config.yaml import Mark, dump, load, scalar
from invem.errors import RecipeError

TEXT = """\
seed: 0
operator: {name: random-mask, keep: 0.4}
phases:
  - name: em
    rounds: 6
    fit: {objective: dsm, lr: 1e-3, on: draws}
"""


def value(text):
    return load(text, "r.yaml").value


def failure(text):
    with pytest.raises(RecipeError) as caught:
        load(text, "r.yaml")
    message = str(caught.value)
    assert re.fullmatch(r"r\.yaml:\d+:\d+: .+", message), message
    assert caught.value.__cause__ is None
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-4", 1e-4),
        ("1e5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-1.5E+3", -1500.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("7", 7),
        ("-7", -7),
        ("+7", 7),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("9" * 100, int("9" * 100)),
        ("true", True),
        ("True", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("1e", "1e"),
        ("٣", "٣"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("nUlL", "nUlL"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, expected):
    read = value(f"a: {text}")["a"]
    assert read == expected
    assert type(read) is type(expected)


def test_nan_is_a_float():
    assert math.isnan(value("a: .nan")["a"])


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "--- null\n...\n"])
def test_an_empty_document_is_none(text):
    assert value(text) is None


def test_keys_such_as_on_are_text():
    assert value("on: 1\nno: 2") == {"on": 1, "no": 2}


def test_marks_give_the_place_of_each_value_and_key():
    document = load(TEXT, "r.yaml")
    path = ("phases", 0, "fit", "lr")
    assert document.marks[path] == Mark(6, 31)
    assert document.keys[path] == Mark(6, 27)
    assert document.marks[()] == Mark(1, 1)
    assert document.marks["phases", 0] == Mark(4, 5)
    assert ("phases", 0) not in document.keys


@pytest.mark.parametrize("text", [TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode(), "\ufeff" + TEXT])
def test_a_byte_order_mark_is_skipped(text):
    assert load(text, "r.yaml") == load(TEXT, "r.yaml")


def test_windows_line_ends_change_nothing():
    assert load(TEXT.replace("\n", "\r\n").encode(), "r.yaml") == load(TEXT, "r.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "r.yaml:3:1: the key 'a' is given twice"),
        ("a: {b: 1, b: 2}", "r.yaml:1:11: the key 'b' is given twice"),
        ("a: &x 1", "r.yaml:1:4: anchors"),
        ("a: *x", "r.yaml:1:4: anchors"),
        ("&x a: 1", "r.yaml:1:1: anchors"),
        ("a: &x [*x]", "r.yaml:1:4: anchors"),
        ("a: !!int 1", "r.yaml:1:4: tags"),
        ("a: !!python/name:os.system ''", "r.yaml:1:4: tags"),
        ("! a", "r.yaml:1:1: tags"),
        ("1: a", "r.yaml:1:1: a key must be text"),
        ("a:\n  true: b", "r.yaml:2:3: a key must be text"),
        ("? [a]\n: b", "r.yaml:1:3: a key must be text"),
        ("~: b", "r.yaml:1:1: a key must be text"),
        ("a\n---\nb\n", "r.yaml:2:1: a second document"),
        ("a: " + "9" * 101, "r.yaml:1:4: a whole number of more than 100 digits"),
        ("a: " + "9" * 5000, "r.yaml:1:4: a whole number of more than 100 digits"),
        ("a: 0x" + "f" * 5000, "r.yaml:1:4: a whole number of more than 100 digits"),
        ("a:\n\tb: 1", "r.yaml:2:1: found character '\\t' that cannot start any token"),
        ("a: b: c", "r.yaml:1:5: mapping values are not allowed here"),
        ("a: [1", "r.yaml:1:6: expected"),
        ("a: 'x", "r.yaml:1:6: found unexpected end of stream"),
        ("a: 1\nb: \0", "r.yaml:2:4: the character U+0000 is not allowed"),
        ('a: "\\0"', "r.yaml:1:4: NUL"),
        ('a: "\\ud800"', "r.yaml:1:4: NUL and surrogate"),
        ("a: \ud800", "r.yaml:1:4: the character U+D800 is not allowed"),
        ('a: "\\UFFFFFFFF"', "r.yaml:1:7: this is not valid YAML"),
        ("%YAML " + "9" * 5000 + ".1\n--- a", "r.yaml:1:7: this is not valid YAML"),
        (b"a: 1\nb: \xe9", "r.yaml:2:4: this is not UTF-8 text"),
        ("a: 1".encode("utf-16"), "r.yaml:1:1: this is not UTF-8 text"),
        ("a: " + "x" * 2**20, "r.yaml:1:1: 1048579 bytes are too many"),
        ("a: " + "é" * 2**19, "r.yaml:1:1: 1048579 bytes are too many"),
        ("[" + "1, " * 20_000 + "]", "r.yaml:1:59999: more than 20000 values"),
        ("- \n" * 30_000, "r.yaml:20000:2: more than 20000 values"),
        ("[" * 33 + "]" * 33, "r.yaml:1:33: more than 32 levels"),
    ],
)
def test_whatever_is_not_plain_data_is_an_error_with_its_place(text, expected):
    assert failure(text).startswith(expected)


def test_thirty_two_levels_are_allowed():
    assert value("[" * 32 + "]" * 32) is not None


def test_twenty_thousand_values_are_allowed():
    assert len(value("[" + "1, " * 19_999 + "]")) == 19_999


@pytest.mark.parametrize("bracket", ["[", "{", "- ", "? ", "{a: ", "[{", "a: ["])
def test_a_depth_bomb_is_refused_at_once(bracket):
    start = time.process_time()
    failure(bracket * 100_000)
    assert time.process_time() - start < 2


def test_an_alias_bomb_is_refused_at_once():
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))]
    assert failure("\n".join(lines)).startswith("r.yaml:1:5: anchors")


@pytest.mark.parametrize(
    "text", ["x" * 10**6, "a: '" + "x" * 10**6 + "'", "a: " + "x y " * 250_000]
)
def test_a_line_of_a_megabyte_is_read_in_reasonable_time(text):
    start = time.process_time()
    load(text, "r.yaml")
    assert time.process_time() - start < 5


def test_a_source_with_line_breaks_stays_on_one_line():
    with pytest.raises(RecipeError, match=r"^a\\nb:1:1: ") as caught:
        load("1: 2", "a\nb")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1,2]", [1, 2]),
        ("{name: karras}", {"name": "karras"}),
        ("1e-4", 1e-4),
        ("true", True),
        ("abc", "abc"),
        ("no", "no"),
        ("", None),
        ("null", None),
        ("a=b", "a=b"),
        ("'1'", "1"),
        ("invem-ct>=0.3", "invem-ct>=0.3"),
    ],
)
def test_values_of_the_command_line_follow_the_same_rules(text, expected):
    assert scalar(text) == expected


@pytest.mark.parametrize(
    "text", ["[1", "*x", "!!int 1", "a\n---\nb", "\0", "a: 1: 2", "[" * 100_000]
)
def test_a_bad_value_of_the_command_line_is_one_line(text):
    with pytest.raises(RecipeError, match=r"\Avalue: [^\n]+\Z"):
        scalar(text)


def test_dump_keeps_the_order_of_keys_in_block_style():
    assert (
        dump({"b": [1, 2.5], "a": {"c": None, "d": True}})
        == "b:\n- 1\n- 2.5\na:\n  c: null\n  d: true\n"
    )


def test_small_floats_stay_readable():
    assert dump({"lr": 1e-5}) == "lr: 1.0e-05\n"


@pytest.mark.parametrize(
    "item",
    [
        None,
        True,
        0,
        -(10**99),
        1e-4,
        1e300,
        5e-324,
        0.1 + 0.2,
        math.inf,
        -math.inf,
        "",
        "1e-4",
        "0o10",
        "010",
        "089",
        "no",
        "true",
        "null",
        "~",
        ".5",
        "1.",
        "12:30:45",
        "2024-01-01",
        "=",
        "<<",
        "a: b",
        "# a",
        "- a",
        "a\nb\n",
        "\n a",
        "  a ",
        "\t",
        "é \u2028 \x85 \x1b \U0001f600",
        "x " * 200,
        "'\"",
        "*a",
        "&a",
        "!a",
        "@a",
        [],
        {},
        [[], [[1]], {}],
        {"k " * 100: {"": []}},
    ],
)
def test_what_is_dumped_loads_again(item):
    read = value(dump({"a": [item], "b": item}))
    assert read == {"a": [item], "b": item}
    assert type(read["b"]) is type(item)


def test_random_text_survives_dump_and_load():
    rng = random.Random(0)
    alphabet = "ab01eEoxX+-._ \n\t:#'\"\\[]{},&*!|>%@`~?=<é\u2028\x85\x07"
    for _ in range(1000):
        text = "".join(rng.choices(alphabet, k=rng.randrange(12)))
        assert value(dump({"a": text, text: [text]})) == {"a": text, text: [text]}, repr(text)


def test_a_shared_list_is_written_twice():
    shared = [1]
    assert value(dump({"a": shared, "b": shared})) == {"a": [1], "b": [1]}


@pytest.mark.parametrize("module", ["invem.config.yaml", "invem.config"])
def test_reading_recipes_imports_neither_torch_nor_numpy(module):
    code = f"import sys, {module}; assert not {{'torch', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
