"""The reference of the command line, rendered from the program itself. ``python -m tests.cli.reference --write``
writes it into ``docs/CLI.md``, below its mark."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from holdfast.cli.main import app

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "CLI.md"
MARK = "<!-- below: written by 'python -m tests.cli.reference --write' -->\n"


def commands() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, groups opened."""
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            for more, child in inner.items():
                yield f"{name} {more}", child


def option_names(command: Any) -> list[str]:
    return [name for parameter in command.params if parameter.param_type_name == "option" for name in parameter.opts]


def render() -> str:
    """The reference as Markdown."""
    parts = []
    for name, command in commands():
        arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
        given = [(parameter.metavar or parameter.name.upper(), parameter.required) for parameter in arguments]
        words = " ".join(text if required else f"[{text}]" for text, required in given)
        parts.append(
            f"### holdfast {name} {words}".rstrip() + f"\n\n{command.help}\n\n| option | meaning |\n|---|---|\n"
        )
        for parameter in command.params:
            if parameter.param_type_name == "option":
                names = ", ".join(f"`{item}`" for item in parameter.opts)
                if not parameter.is_flag:
                    names += " " + _value(parameter)
                parts.append(f"| {names} | {_meaning(parameter)} |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def _value(parameter: Any) -> str:
    """What stands behind the option: its placeholder, or the words it accepts."""
    if parameter.metavar:
        return str(parameter.metavar)
    for annotation in (parameter.type_descriptor.annotation, *get_args(parameter.type_descriptor.annotation)):
        if get_origin(annotation) is Literal:
            return " or ".join(get_args(annotation))
        if annotation in (int, float):
            return "NUMBER"
    return "TEXT"


def _meaning(parameter: Any) -> str:
    text = (parameter.help or "").replace("|", "\\|")
    if parameter.required:
        text += " Required."
    elif parameter.default not in (None, False, "") and not callable(parameter.default):
        text += f" Default: {parameter.default}."
    return text


def main() -> None:
    head = DOCUMENT.read_text(encoding="ascii").partition(MARK)[0]
    text = head + MARK + "\n" + render()
    if "--write" in sys.argv:
        DOCUMENT.write_text(text, encoding="ascii")
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
