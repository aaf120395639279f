"""Figures as people read them."""

from lab.figures import percentile


def test_a_percentile_is_one_of_the_values_and_no_shorter_than_so_many_of_them() -> None:
    values = [float(k) for k in range(1, 201)]
    assert percentile(values, 99) == 198
    assert percentile(values, 50) == 100
    assert percentile([3.0], 99) == 3.0
    assert percentile([1.0, 2.0], 50) == 1.0
    assert percentile("abc", 100) == "c"
    assert percentile("abc", 0) == "a"
