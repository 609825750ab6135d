import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segbench import records
from segbench.errors import CellError
from segbench.types import Interval, Measure

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_equal_facts_have_one_digest_whatever_their_order(facts):
    turned = dict(reversed(facts.items()))
    assert records.canonical(turned) == records.canonical(facts)
    assert records.digest(turned) == records.digest(facts)


def test_numbers_of_numpy_are_numbers():
    assert records.canonical([np.int64(3), np.float32(0.5), np.bool_(True)]) == "[3,0.5,true]"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float64("nan"), {1, 2}, np.zeros(2), object()])
def test_what_is_no_fact_is_refused(value):
    with pytest.raises(CellError, match="cannot be written down"):
        records.canonical({"x": value})


def test_a_measure_comes_back_as_it_was():
    whole = Measure("miou", 41.2, "%", 7, "llm.3", "sky", Interval(40.0, 42.5))
    bare = Measure("coverage", 100.0, "%", 7)
    assert [records.measure(records.measure_facts(one)) for one in (whole, bare)] == [whole, bare]
    assert set(records.measure_facts(bare)) == {"metric", "value", "unit", "count"}


def test_a_measure_that_is_no_number_is_refused_by_name():
    with pytest.raises(CellError, match=r"miou llm\.3"):
        records.measure_facts(Measure("miou", float("nan"), "%", 7, "llm.3"))
