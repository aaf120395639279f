"""Examples for the help of each command: what it is mostly called with. Held to the commands by tests/lab/test_completion.py."""

from typing import Any

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("launch.py demo", "launch.py demo --seconds 2 --json demo.json"),
    "run": (
        "launch.py run topologies/tap.toml",
        "launch.py run topologies/demo.toml --json out.json",
        "launch.py run topologies/web.toml --web",
    ),
    "exec": ("launch.py exec alice -- ping -c 3 bob", "launch.py exec --topology tap alice -- bash"),
    "forward": ("launch.py forward alice:8000", "launch.py forward alice:80 8080"),
    "move": ("launch.py move alice --path bypass",),
    "status": ("launch.py status", "launch.py status --json"),
    "top": ("launch.py top", "launch.py top tap --interval 0.5", "launch.py top --once", "launch.py top --json"),
    "web": ("launch.py web", "launch.py web tap --port 0"),
    "trace": ("launch.py trace alice bob", "launch.py trace --seconds 5 --out trace.json", "launch.py trace tap --every 1"),
    "explain": ("launch.py explain trace.json",),
    "capture": ("launch.py capture alice | tshark -r -", "launch.py capture --out all.pcapng --seconds 5"),
    "stop": ("launch.py stop", "launch.py stop tap", "launch.py stop --all --yes"),
    "check": ("launch.py check my.toml",),
    "explain-topology": ("launch.py explain-topology topologies/models.toml",),
    "new": (
        "launch.py new my.toml",
        "launch.py new my.toml --paths split,bypass,trapped --guests 1 --workloads stream",
        "launch.py new my.toml --program tap",
    ),
    "clean": ("launch.py clean",),
    "completion": (
        'eval "$(launch.py completion bash)"',
        'eval "$(launch.py completion zsh)"',
        "launch.py completion fish | source",
    ),
    "store ls": ("launch.py store ls /local/domain/1", "launch.py store ls -fp /"),
    "store read": ("launch.py store read /local/domain/1/name",),
    "store write": ("launch.py store write /tool/a one /tool/b two",),
    "store rm": ("launch.py store rm /tool/a",),
    "store watch": ("launch.py store watch /local/domain/0/backend -n 3",),
}
"""By command. A line each, as it is typed."""


def show_examples(app: Any, before: str = "") -> None:
    """Let each command of a Typer application, and of those in it, show its examples below its help."""
    for command in app.registered_commands:
        name = before + (command.name or command.callback.__name__.replace("_", "-"))
        if lines := EXAMPLES.get(name):
            command.epilog = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
    for group in app.registered_groups:
        show_examples(group.typer_instance, f"{group.name} ")
