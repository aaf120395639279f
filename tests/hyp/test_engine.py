"""The mailbox of an engine: messages whose words have names, in order, however many are posted at a time."""

import asyncio
import os
import select

import numpy as np
import pytest

from hyp.atomics import epoll_sleep, load64, record_view, store64
from hyp.engine import MAIL_SLOTS, MESSAGE_BYTES, NO_WORDS, STOP, Engine, mail_address, mail_record, mail_taken, mail_waiting
from hyp.kernels import entry, i64
from tests.support.control_ends import run

NOTE, ADD = 1, 2
MAIL = mail_record("first", "second")
BOOK = np.dtype([("mailbox", "i8"), ("mail", "i8"), ("epoll", "i8"), ("sum", "i8"), ("noted", "i8"), ("notes", "i8")])
_mail_at, _book_at = record_view(MAIL), record_view(BOOK)


@entry(i64(i64))
def keep_book(address: int) -> int:
    """Write down the first word of each NOTE, add up what ADD has; returns the number of notes."""
    b = _book_at(address)
    while True:
        epoll_sleep(b.epoll, -1, 0)
        stop = False
        while mail_waiting(b.mailbox, b.mail) > 0:
            m = _mail_at(mail_address(b.mailbox, b.mail))
            if m.opcode == STOP:
                stop = True
            elif m.opcode == NOTE:
                store64(b.notes + 8 * b.noted, m.first)
                b.noted += 1
            else:
                b.sum += m.first - m.second
            b.mail += 1
        mail_taken(b.mailbox, b.mail)
        if stop:
            noted: int = b.noted
            return noted


@entry(i64(i64))
def first_note(notes: int) -> int:
    """What was noted first."""
    first: int = load64(notes)
    return first


class Keeper:
    """An engine that keeps a book."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self.engine = Engine("book", os.dup(self._poll.fileno()))
        self.notes = np.zeros(4 * MAIL_SLOTS, np.int64)
        self.book = np.zeros(1, BOOK)
        row = self.book[0]
        row["mailbox"], row["epoll"], row["notes"] = self.engine.mailbox, self._poll.fileno(), self.notes.ctypes.data

    def start(self) -> None:
        keep_book.load()
        self.engine.start(keep_book, int(self.book.ctypes.data), mail=MAIL)


def test_words_arrive_by_their_names_and_messages_in_order() -> None:
    async def main() -> None:
        keeper = Keeper()
        keeper.start()
        await keeper.engine.post(ADD, second=3)
        await keeper.engine.post(ADD, first=1 << 40)
        many = 3 * MAIL_SLOTS  # more than the mailbox holds
        await asyncio.gather(*(keeper.engine.post(NOTE, first=-k) for k in range(many)))
        assert int(keeper.book[0]["sum"]) == (1 << 40) - 3, "a word that is not given is 0"
        assert await keeper.engine.stop() == many
        assert keeper.notes[:many].tolist() == [-k for k in range(many)]
        assert first_note(int(keeper.notes.ctypes.data)) == 0

    run(main())


def test_a_word_that_its_messages_do_not_have_is_refused() -> None:
    async def main() -> None:
        keeper = Keeper()
        keeper.start()
        with pytest.raises(ValueError, match="third"):
            await keeper.engine.post(NOTE, third=1)
        assert await keeper.engine.stop() == 0
        with pytest.raises(RuntimeError, match="does not run"):
            await keeper.engine.post(NOTE, first=1)

    run(main())


def test_layouts_of_messages() -> None:
    assert NO_WORDS.names == ("opcode",)
    assert MAIL.names == ("opcode", "first", "second")
    assert MAIL.itemsize == NO_WORDS.itemsize == MESSAGE_BYTES
    assert mail_record(*(f"word{k}" for k in range(15))).itemsize == MESSAGE_BYTES
    with pytest.raises(ValueError, match="itemsize"):
        mail_record(*(f"word{k}" for k in range(16)))
