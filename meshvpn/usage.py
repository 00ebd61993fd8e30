"""What typer says of a wrong command line in several lines, in one."""

from __future__ import annotations

from typer.exceptions import TyperException


def usage_line(error: TyperException, program: str) -> str:
    """What is wrong and where to read more. What was typed too much is not repeated: it may be a password."""
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    message = f"{message[:1].lower()}{message[1:]}"
    if message.startswith("got unexpected extra argument"):
        message = "too many arguments (a password is never one)"
    if ". Did you mean " in message:
        return message.replace(". Did you mean ", "; did you mean ")
    message = message.replace("a valid int range", "a number").replace("a valid int", "a number")
    return f"{message}; see `{program if context is None else context.command_path} --help`"
