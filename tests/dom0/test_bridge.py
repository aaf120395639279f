"""The learning bridge's table: learns, ages, follows a station that moves, and stays bounded whatever addresses are invented."""

import random

import numpy as np
import pytest

from dom0.bridge import ENTRY, FDB_SLOTS, NO_PORT, PROBES, add_static, forget_port, learn, whereabouts
from hyp.abi.nic import BROADCAST, mac_to_int
from hyp.kernels import entry, i64, void

AGEING = 300_000_000_000
START = 1_000_000_000_000
SEED = 9413523


@entry(i64(i64, i64, i64, i64))
def do_learn(fdb: int, mac: int, port: int, now: int) -> int:
    return 1 if learn(fdb, mac, port, now) else 0


@entry(i64(i64, i64, i64, i64))
def do_look_up(fdb: int, mac: int, now: int, ageing: int) -> int:
    return whereabouts(fdb, mac, now, ageing)


@entry(void(i64, i64))
def do_forget(fdb: int, port: int) -> None:
    forget_port(fdb, port)


@entry(i64(i64, i64, i64, i64, i64))
def learn_many(fdb: int, first: int, count: int, port: int, now: int) -> int:
    """Learn `count` unicast addresses that follow from `first`, a nanosecond apart; how many are found right after."""
    mac, found = first, 0
    for k in range(count):
        mac = (mac * 6364136223846793005 + 1442695040888963407) & 0xFFFF_FFFF_FFFE
        learn(fdb, mac, port, now + k)
        found += whereabouts(fdb, mac, now + k, 1) == port
    return found


class Table:
    GUARD = 64

    def __init__(self) -> None:
        self._memory = np.zeros(FDB_SLOTS + 2 * self.GUARD, ENTRY)
        self._memory[: self.GUARD] = self._memory[-self.GUARD :] = (-7, -7, -7)
        self.entries = self._memory[self.GUARD : -self.GUARD]
        self.address = int(self.entries.ctypes.data)
        self.now = START

    def learn(self, mac: int, port: int) -> bool:
        return bool(do_learn(self.address, mac, port, self.now))

    def add_static(self, mac: int, port: int) -> bool:
        return bool(add_static(self.address, mac, port))

    def __getitem__(self, mac: int) -> int:
        return int(do_look_up(self.address, mac, self.now, AGEING))

    def forget(self, port: int) -> None:
        do_forget(self.address, port)

    def check(self) -> None:
        guards = np.concatenate([self._memory[: self.GUARD], self._memory[-self.GUARD :]])
        assert (guards["mac"] == -7).all()
        assert (guards["port"] == -7).all()
        known = self.entries["mac"][self.entries["mac"] != 0]
        assert len(known) == len(set(known.tolist())), "an address stands in the table twice"


@pytest.fixture
def table() -> Table:
    return Table()


def test_learns_where_a_station_is(table: Table) -> None:
    anna, bert = mac_to_int("02:00:00:00:00:01"), mac_to_int("02:00:00:00:00:02")
    assert table[anna] == NO_PORT
    table.learn(anna, 1)
    table.learn(bert, 64)
    table.learn(bert + (1 << 40), 0)
    assert (table[anna], table[bert], table[bert + (1 << 40)]) == (1, 64, 0)
    table.check()


def test_a_station_that_moves_is_found_at_its_new_port(table: Table) -> None:
    anna = mac_to_int("02:00:00:00:00:01")
    for port in (1, 2, 0, 1, 33):
        table.learn(anna, port)
        assert table[anna] == port
    assert (table.entries["mac"] == anna).sum() == 1


def test_a_station_is_forgotten_when_it_was_silent_for_long(table: Table) -> None:
    anna, bert = mac_to_int("02:00:00:00:00:01"), mac_to_int("02:00:00:00:00:02")
    table.learn(anna, 1)
    table.learn(bert, 2)
    table.now += AGEING - 1
    assert table[anna] == 1
    table.learn(bert, 2)
    table.now += 1
    assert table[anna] == NO_PORT
    assert table[bert] == 2
    table.learn(anna, 3)
    assert table[anna] == 3


@pytest.mark.parametrize("mac", [BROADCAST, mac_to_int("33:33:00:00:00:01"), mac_to_int("01:80:c2:00:00:00"), 0])
def test_group_addresses_and_zero_are_nobodys(table: Table, mac: int) -> None:
    assert not table.learn(mac, 5)
    assert table[mac] == NO_PORT
    assert not table.entries["mac"].any()


def test_an_empty_table_knows_nobody_however_young_the_machine(table: Table) -> None:
    table.now = 5
    assert [table[mac] for mac in (0, 2, mac_to_int("02:00:00:00:00:01"))] == [NO_PORT] * 3
    table.forget(0)
    assert table[0] == NO_PORT


def test_forgetting_a_port_leaves_the_others(table: Table) -> None:
    macs = [2 * (k + 1) for k in range(300)]
    for k, mac in enumerate(macs):
        table.learn(mac, k % 3)
    known = [k for k, mac in enumerate(macs) if table[mac] == k % 3]
    assert len(known) > 290
    table.forget(1)
    for k in known:
        assert table[macs[k]] == (NO_PORT if k % 3 == 1 else k % 3)
    for k in known:
        table.learn(macs[k], 7)
        assert table[macs[k]] == 7
    table.check()


def test_a_flood_of_invented_addresses_stays_in_the_table(table: Table) -> None:
    assert learn_many(table.address, 0x1234_5678_9ABC, 200_000, 6, START) == 200_000, "what was learnt last is found"
    table.check()
    assert (table.entries["port"] == 6).all()
    anna = mac_to_int("02:00:00:00:00:01")
    table.now = START + 300_000
    table.learn(anna, 1)
    assert table[anna] == 1, "a station that speaks is found, whoever filled the table before"
    table.check()


def test_a_static_address_stays_where_it_is(table: Table) -> None:
    """Whoever claims it, whatever else is learnt, however long it is silent, and when its port goes away."""
    anna, bert = mac_to_int("02:00:00:00:00:01"), mac_to_int("02:00:00:00:00:02")
    table.learn(anna, 3)
    assert table.add_static(anna, 1)
    assert table.add_static(bert, 2)
    assert not table.add_static(anna, 2)
    assert table.learn(anna, 1)
    assert not table.learn(anna, 0)
    learn_many(table.address, 0x1234_5678_9ABC, 200_000, 6, START)
    table.forget(1)
    table.now += 10 * AGEING
    assert [table[mac] for mac in (anna, bert)] == [1, 2]
    table.check()


def test_a_table_full_of_static_addresses_has_no_place_and_says_so(table: Table) -> None:
    given = [mac for mac in range(2, 4 * FDB_SLOTS, 2) if table.add_static(mac, 1)]
    refused = sorted(set(range(2, 4 * FDB_SLOTS, 2)) - set(given))
    assert refused
    assert table.learn(refused[0], 0)
    assert table[refused[0]] == NO_PORT
    assert all(table[mac] == 1 for mac in given)
    table.check()


def test_the_longest_silent_of_its_places_makes_room(table: Table) -> None:
    """Nobody is thrown out while one that has been silent for longer could be."""
    rng = random.Random(SEED)
    anna = mac_to_int("02:00:00:00:00:01")
    for _ in range(2000):
        table.now += 1000
        table.learn(anna, 1)
        for _ in range(PROBES - 1):  # fewer than the places that anna's address may take
            table.now += 1
            table.learn(rng.randrange(1 << 47) << 1, 2)
        assert table[anna] == 1
    table.check()


def test_an_address_is_never_found_where_it_did_not_speak(table: Table) -> None:
    rng = random.Random(SEED)
    macs = [rng.randrange(1, 1 << 47) << 1 for _ in range(3000)]
    last: dict[int, tuple[int, int]] = {}
    for _ in range(30_000):
        table.now += rng.randrange(AGEING // 3000)
        mac = rng.choice(macs)
        if rng.random() < 0.5:
            last[mac] = (rng.randrange(8), table.now)
            table.learn(mac, last[mac][0])
        else:
            port, seen = last.get(mac, (NO_PORT, 0))
            found = table[mac]
            assert found in (port, NO_PORT)
            if table.now - seen >= AGEING:
                assert found == NO_PORT
        if rng.random() < 0.001:
            gone = rng.randrange(8)
            table.forget(gone)
            last = {mac: place for mac, place in last.items() if place[0] != gone}
    table.check()
