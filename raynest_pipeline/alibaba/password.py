"""The workers' login password."""

import re
import secrets
import string

# The template allows ()`~!@#$%^&*_-+=|{}[]:;<>,.?/ too; these need no quoting in any shell, URL or YAML.
PUNCTUATION = "_-.~"
LENGTH = 24

_RULE = re.compile(r"[A-Za-z0-9()`~!@#$%^&*_\-+=|{}\[\]:;<>,.?/]{8,30}")
_CLASSES = (string.ascii_lowercase, string.ascii_uppercase, string.digits, "()`~!@#$%^&*_-+=|{}[]:;<>,.?/")


def generate_password() -> str:
    """A new password that meets the template's rule, with all four classes, from the system's entropy.

    Nobody has to remember it: raynest logs in to no worker. It keeps the template's published default out.
    """
    alphabet = string.ascii_letters + string.digits + PUNCTUATION
    while True:
        password = "".join(secrets.choice(alphabet) for _ in range(LENGTH))
        if all(any(char in group for char in password) for group in _CLASSES):
            return password


def meets_rule(password: str) -> bool:
    """The template's rule: 8 to 30 characters of its alphabet, at least three of the four classes."""
    classes = sum(any(char in group for char in password) for group in _CLASSES)
    return bool(_RULE.fullmatch(password)) and classes >= 3
