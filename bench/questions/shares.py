"""What part of the difference between split and bypass is what: by taking parts of split away, in the same rounds.

The parts can be taken away alone or together, and what one is worth depends on whether the other is there. So each part's share
is the mean over both orders (its Shapley value), and the shares of hop, copy and grants add up to the difference, round by round:

    split             the detour through Dom0, with a copy of each frame and a grant operation for each
    − copy            netback copies the header only (hyp/model/ablation.py)
    − grant           pages are granted once (persistent grants)
    − copy − grant    both: what is left is the hop

`notify` is a part of the hop and no fourth one: what notifications cost is read off split without hold-off, which makes more of
them: the CPU that one more notification took, times the notifications that split makes.
"""

from collections.abc import Sequence

from bench.method.options import OptionsError
from bench.method.samples import Figure, Samples
from bench.questions.measure import PERSISTENT, Variant
from bench.questions.settings import NONE, Setting
from hyp.abi.frame import COVERED

BYPASS, SPLIT = "bypass", "split"
NO_COPY, NO_COPY_NO_GRANT, NO_HOLD_OFF = "split − copy", "split − copy − grant", "split, no hold-off"
PARTS = ("hop", "copy", "grant", "notify")

_COPY = Variant(NO_COPY, SPLIT, "copy_limit")
_GRANT = Variant(PERSISTENT, SPLIT, None, "persistent")
_BOTH = Variant(NO_COPY_NO_GRANT, SPLIT, "copy_limit", "persistent")
NAMES = (BYPASS, SPLIT, NO_COPY, PERSISTENT, NO_COPY_NO_GRANT)


def _hop(cpu: Sequence[float]) -> float:
    return cpu[4] - cpu[0]


def _copy(cpu: Sequence[float]) -> float:
    return ((cpu[1] - cpu[2]) + (cpu[3] - cpu[4])) / 2


def _grant(cpu: Sequence[float]) -> float:
    return ((cpu[1] - cpu[3]) + (cpu[2] - cpu[4])) / 2


WORTH = {"hop": _hop, "copy": _copy, "grant": _grant}
TEXTS = {
    "hop": "the detour through Dom0 itself",
    "copy": "the copy that Dom0 makes of each frame",
    "grant": "the grant operation for each frame",
    "notify": "notifications (of the detour's part)",
}


def variants(parts: Sequence[str]) -> list[Variant]:
    """What has to be measured beside bypass and split."""
    return [_COPY, _GRANT, _BOTH, *([Variant(NO_HOLD_OFF, SPLIT, "keep_armed")] if "notify" in parts else [])]


def check(parts: Sequence[str], paths: Sequence[str], settings: Sequence[Setting]) -> None:
    """OptionsError where a difference can't be split into these parts."""
    if unknown := [part for part in parts if part not in PARTS]:
        raise OptionsError(f"--split-into {unknown[0]}: the parts are {', '.join(PARTS)}")
    if not {BYPASS, SPLIT} <= set(paths):
        raise OptionsError("--split-into takes the difference between split and bypass apart: --paths needs both")
    for one in settings:
        if one.payload != "header" or one.frame <= COVERED:
            raise OptionsError(
                f"--split-into leaves the copy of a payload out, so nobody may look at it: it takes payload=header, and frames of "
                f"more than {COVERED} B"
            )
        if one.ablation != NONE or one.kind is not None:
            raise OptionsError("--split-into takes parts away itself: ablation=none, grants=copy")


def difference(samples: Samples, metric: str) -> Figure:
    """Split − bypass, in the metric's unit, of the rounds in which all of `NAMES` have a figure in one regime."""
    return samples.made(NAMES, metric, lambda cpu: cpu[1] - cpu[0])


def share(samples: Samples, metric: str, part: str) -> Figure:
    """A part's share of the difference, with its interval; not above 0 and below 1 where parts help each other."""
    if part == "notify":
        return _notify(samples, metric)
    worth = WORTH[part]
    return samples.made(NAMES, metric, lambda cpu: worth(cpu) / (cpu[1] - cpu[0]))


def _notify(samples: Samples, metric: str) -> Figure:
    """By the marginal cost of a notification: (more CPU ÷ more notifications) × split's notifications ÷ the difference."""
    told = samples.figure(SPLIT, "per_frame_notifications").median
    more = samples.figure(NO_HOLD_OFF, "per_frame_notifications").median
    if told is None or more is None or more <= told:
        return Figure(None, None, None, 0, "none")
    factor = told / (more - told)
    names = (BYPASS, SPLIT, NO_HOLD_OFF)
    return samples.made(names, metric, lambda cpu: factor * (cpu[2] - cpu[1]) / (cpu[1] - cpu[0]))
