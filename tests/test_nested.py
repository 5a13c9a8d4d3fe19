"""Numbers within nested options: read and replaced by their path."""

from functools import partial

import pytest
from invem_plugins.operators.gain import gain
from invem_plugins.operators.gaussian_blur import gaussian_blur

from invem import RecipeError
from invem.config.nested import option_number, with_option

OPTIONS = {
    "std": 1.0,
    "size": 7,
    "of": [partial(gaussian_blur, std=1.0), partial(gain, gain=1.0)],
    "levels": [0.1, 0.2],
}


def test_an_option_is_replaced_at_its_path():
    assert with_option(OPTIONS, ["std"], 2.0)["std"] == 2.0
    new = with_option(OPTIONS, ["of", "1", "gain"], 3.0)
    assert new["of"][1].keywords == {"gain": 3.0} and OPTIONS["of"][1].keywords == {"gain": 1.0}
    assert new["of"][0] is OPTIONS["of"][0]
    assert with_option(OPTIONS, ["levels", "1"], 0.3)["levels"] == [0.1, 0.3]


def test_an_option_is_read_at_its_path():
    assert option_number(OPTIONS, ["size"]) == 7.0
    assert option_number(OPTIONS, ["of", "1", "gain"]) == 1.0
    assert option_number(OPTIONS, ["levels", "1"]) == 0.2


@pytest.mark.parametrize(
    "use", [lambda path: with_option(OPTIONS, path, 1.0), partial(option_number, OPTIONS)]
)
@pytest.mark.parametrize(
    ("path", "text"),
    [
        (["sd"], "no option"),
        (["of"], "not a number"),
        (["of", "2", "gain"], "no part"),
        (["std", "x"], "no part"),
    ],
)
def test_a_path_to_no_number_is_refused(use, path, text):
    with pytest.raises(RecipeError, match=text):
        use(path)
