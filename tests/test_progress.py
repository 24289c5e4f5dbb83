"""Progress: what a listener is told, and a bar for those who have none."""

import re

import pytest

from variational_diffusion.machine.progress import Progress, nothing, telling


def test_a_listener_is_told_what_is_done_and_that_it_ended():
    told: list[Progress] = []
    with telling(told.append, "work", "images") as tell:
        tell(0.5, 3, lambda: "half")
    assert [(t.title, t.unit, t.share, t.count, t.note(), t.ended) for t in told] == [
        ("work", "images", 0.5, 3, "half", False),
        ("work", "images", 0.5, 3, "half", True),
    ]


def test_work_that_fails_ends_too():
    told: list[Progress] = []
    with pytest.raises(ValueError, match="no"), telling(told.append, "work", "images"):
        raise ValueError("no")
    assert [t.ended for t in told] == [True]


def test_nothing_is_printed_unless_asked(capsys):
    with telling(False, "work", "images") as tell:
        tell(0.5, 3, nothing)
    assert capsys.readouterr() == ("", "")


def test_true_shows_a_bar(capsys):
    with telling(True, "work", "images") as tell:
        tell(0.5, 3, lambda: "1.7 bits/dim")
    assert re.search(r"^work .* 50% +1\.7 bits/dim", capsys.readouterr().err, re.MULTILINE)
