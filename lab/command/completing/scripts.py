"""Shell completion: the scripts for bash, zsh and fish, and the words that they ask for.

A script asks ``launch.py complete -- WORD...``, with the words so far, the last of which is to be completed, and gets a line for
each candidate: the word, a tab, a few words about it. Whoever was asked in vain says nothing: completion never fails loudly.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lab.command.completing.names import guests, topologies

_BASH = r"""
_xen_bypass_lab() {
    local word about
    COMPREPLY=()
    while IFS=$'\t' read -r word about; do
        COMPREPLY+=("$word")
        case "$word" in */ | *:) compopt -o nospace ;; esac
    done < <("${1/#\~/$HOME}" complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o filenames -F _xen_bypass_lab launch.py xen-bypass-lab
"""
_ZSH = r"""
#compdef launch.py xen-bypass-lab
_xen_bypass_lab() {
    local -a found
    local line
    for line in "${(@f)$("${words[1]/#\~/$HOME}" complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
        [[ -n $line ]] && found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
    done
    _describe -o 'word' found
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
compdef _xen_bypass_lab launch.py xen-bypass-lab
"""
_FISH = r"""
function _xen_bypass_lab
    set -l typed (commandline -opc) (commandline -ct)
    command $typed[1] complete -- $typed[2..-1] 2>/dev/null
end
complete -c launch.py -f -a '(_xen_bypass_lab)'
complete -c xen-bypass-lab -f -a '(_xen_bypass_lab)'
"""
SCRIPTS = {"bash": _BASH.lstrip(), "zsh": _ZSH.lstrip(), "fish": _FISH.lstrip()}

Candidates = Iterator[tuple[str, str]]
"""(word, about it)"""
Completer = Callable[[str], Candidates]


def _files(suffix: str) -> Completer:
    """Files of that ending, and folders in which there may be some."""

    def those(word: str) -> Candidates:
        folder, _, begun = word.rpartition("/")
        within = f"{folder}/" if "/" in word else ""
        with contextlib.suppress(OSError), os.scandir(os.path.expanduser(within) or ".") as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.name.startswith(begun) and not (entry.name.startswith(".") and not begun):
                    if entry.is_dir():
                        yield f"{within}{entry.name}/", "folder"
                    elif entry.name.endswith(suffix):
                        yield f"{within}{entry.name}", "file"

    return those


def _guests(then: str = "", **having: str) -> Completer:
    def those(word: str) -> Candidates:
        for topology, guest in guests():
            if all(guest.get(key) == value for key, value in having.items()):
                yield f"{guest['name']}{then}", f"{guest['path']} guest of {topology}"

    return those


def _topologies(word: str) -> Candidates:
    for name in topologies():
        yield name, "topology that is running"


def _one_of(*words: str) -> Completer:
    return lambda word: iter([(one, "") for one in words])


def _either(*completers: Completer) -> Completer:
    return lambda word: itertools.chain.from_iterable(one(word) for one in completers)


_TOML, _ANY = _files(".toml"), _files("")
OF_ARGUMENT: dict[tuple[str, str], Completer] = {
    ("run", "file"): _TOML, ("check", "file"): _TOML, ("explain-topology", "file"): _TOML, ("new", "file"): _TOML,
    ("exec", "guest"): _guests(program="tap"), ("capture", "guest"): _guests(),
    ("explain", "file"): _files(".json"), ("forward", "target"): _guests(":", program="tap"), ("move", "guest"): _guests(),
    ("stop", "name"): _topologies, ("top", "name"): _topologies, ("web", "name"): _topologies,
    ("trace", "ends"): _either(_guests(), _topologies), ("completion", "shell"): _one_of(*SCRIPTS),
}  # fmt: skip
"""(command, its argument) → what can stand there."""
OF_OPTION: dict[str, Completer] = {
    "--topology": _topologies, "--path": _one_of("split", "bypass"), "--program": _one_of("traffic", "tap"),
}  # fmt: skip
"""What can stand behind an option. Behind others that take a value: a file."""


def candidates(command: Any, words: Sequence[str]) -> list[tuple[str, str]]:
    """What the last of `words` can be completed to. `command`: the application's, as `typer.main.get_command` makes it."""
    *before, begun = words or [""]
    name, arguments, behind = "", 0, None
    for word in before:
        if behind is not None:
            behind = None
        elif word == "--":
            return []  # what follows is another program's
        elif word.startswith("-"):
            behind = word if _takes_value(command, word) else None
        elif hasattr(command, "commands") and word in command.commands:
            command, name, arguments = command.commands[word], f"{name} {word}".strip(), 0
        else:
            arguments += 1
    return [(word, about) for word, about in _possible(command, name, arguments, behind, begun) if word.startswith(begun)]


def _possible(command: Any, name: str, arguments: int, behind: str | None, begun: str) -> Candidates:
    if behind is not None:
        yield from OF_OPTION.get(behind, _ANY)(begun)
    elif begun.startswith("-"):
        yield "--help", "Show this message and exit."
        for one in command.params:
            if one.param_type_name == "option":
                yield max(one.opts, key=len), getattr(one, "help", "") or ""
    elif hasattr(command, "commands"):
        for called, one in command.commands.items():
            if not one.hidden:
                yield called, one.get_short_help_str(60)
    else:
        taken = [one for one in command.params if one.param_type_name == "argument"]
        last = taken[-1:] if taken and taken[-1].nargs == -1 else []  # takes as many as there are
        one = next(iter([*taken[arguments : arguments + 1], *last]), None)
        completer = OF_ARGUMENT.get((name, one.name)) if one is not None else None
        yield from completer(begun) if completer is not None else ()


def _takes_value(command: Any, word: str) -> bool:
    """Whether an option is followed by its value, as a word of its own."""
    return any(word in one.opts and not getattr(one, "is_flag", False) for one in command.params if one.param_type_name == "option")


def lines(command: Any, words: Sequence[str]) -> list[str]:
    """For a script: a line for each candidate."""
    return [f"{word}\t{' '.join(about.split())}" for word, about in candidates(command, words)]
