"""Who is started again, and when that ends."""

from lab.keeper.restarts import Limit, Restarts


def test_so_often_within_so_many_seconds_and_no_more() -> None:
    restarts, limit = Restarts(), Limit(2, 10.0)
    assert [restarts.may("nic", at, limit) for at in (0.0, 4.0, 9.0)] == [True, True, False]
    assert restarts.may("dom0", 9.0, limit), "each for itself"
    assert restarts.may("nic", 10.5, limit), "the first was long ago"
    assert not restarts.may("nic", 11.0, limit)
    assert restarts.may("nic", 11.0, Limit(3, 10.0))
