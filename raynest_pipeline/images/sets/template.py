"""A template: text with {variables} in it. {{ and }} stand for braces."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_SPACE = re.compile(r"[ \t\r\n]+")


class TemplateError(ValueError):
    """The text is no template; says why, and where in it."""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template.

    Attributes:
        literals: The text between the variables; one more than there are variables.
        fields: Names of the variables, in the order of the text; a name may come more than once.
    """

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    def render(self, values: Mapping[str, str]) -> str:
        """The text with the values in it. Any white space becomes one space: a value may be empty."""
        parts = [self.literals[0]]
        for name, literal in zip(self.fields, self.literals[1:], strict=True):
            parts += (values[name], literal)
        return _SPACE.sub(" ", "".join(parts)).strip()


def parse_template(text: str) -> Template:
    """Take a template apart.

    Raises:
        TemplateError: A brace has no partner, or what is in braces is not the name of a variable.
    """
    literals, fields, at = [""], [], 0
    for piece in _PIECE.finditer(text):
        literals[-1] += text[at : piece.start()]
        at = piece.end()
        found = piece.group()
        if found in ("{{", "}}"):
            literals[-1] += found[0]
        elif found in ("{", "}"):
            raise TemplateError(
                f"has a {found!r} without its partner at character {piece.start() + 1}; "
                f"for a brace as such write {found * 2!r}"
            )
        else:
            name = piece[1].strip()
            if not _NAME.fullmatch(name):
                raise TemplateError(
                    f"has {found!r} at character {piece.start() + 1}; "
                    "between braces goes the name of a variable: a-z, 0-9 and _"
                )
            fields.append(name)
            literals.append("")
    literals[-1] += text[at:]
    return Template(tuple(literals), tuple(fields))


def unknown_variable(name: str, known: Iterable[str]) -> str:
    """Words for a variable that does not exist."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names) or 'none'}"
    return f"{name!r} is not a variable of this set; {hint}"


def is_variable_name(name: str) -> bool:
    """Whether a variable may have this name."""
    return _NAME.fullmatch(name) is not None and len(name) <= 40
