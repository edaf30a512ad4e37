"""Write docs/errors.md from countvae.errors and from the sentences in the code."""

import ast
from collections import defaultdict
from pathlib import Path

from countvae import errors
from countvae.console import EXIT_CODES

ROOT = Path(__file__).parents[1]

HEAD = """\
<!-- Written by docs/make_errors.py: do not edit. -->

# Errors: causes and cures

A command that cannot go on says one sentence on stderr, which names the argument or file and, where
there is one, the sample and the feature; what was there is untouched, and nothing is written but
what a fit that was broken off or diverged leaves beside its output.
`--debug` shows where in the code it came from. From Python the same sentence is that of an
exception of the class named here; those of bad input are all an `errors.InputError`, which is a
`ValueError`.

| exit code | meaning |
|---|---|
| 0 | fine |
| 1 | an error of the program's own: please report it |
| 2 | usage: an unknown option, a missing argument |
| 3 | bad input, or an output that cannot be written |
| 4 | a fit diverged; what its best epoch came to, if it had one, is in `OUTPUT_DIR.diverged` |
| 5 | out of memory: as `TooLarge` below, noticed late; of a fit with the command that goes on |
| 6 | another process of the fit ended |
| 130 | interrupted: once a step of a fit is done, the sentence has the command that goes on |
"""


def sentences() -> dict[str, list[str]]:
    """Return the sentences of each error, as the code has them, with … for what they are about."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for file in sorted((ROOT / "countvae").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and node.args):
                continue
            text, called = _text(node.args[0]), getattr(node.func, "id", None)
            if isinstance(node.func, ast.Attribute) and node.func.attr == "diverged":
                called = "Diverged"
            if called in errors.__all__ and text:
                found[called][text] = None
    return {name: list(texts) for name, texts in found.items()}


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(part.value)
        elif isinstance(part, ast.FormattedValue):
            value = part.value
            parts.append(f"‹{value.id}›" if isinstance(value, ast.Name) else "…")
    return "".join(parts)


def page() -> str:
    """Return the page."""
    said, parts = sentences(), [HEAD]
    for name, kind in vars(errors).items():
        if not hasattr(kind, "cure"):
            continue
        code = next(code for base, code in EXIT_CODES.items() if issubclass(kind, base))
        cause = " ".join((kind.__doc__ or "").split())
        parts.append(f"## {name}\n\n{cause} Exit code {code}.\n\n**Cure.** {kind.cure}\n")
        if name in said:
            parts.append("\n".join(f"- `` {text} ``" for text in said[name]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "errors.md").write_text(page(), encoding="utf-8")
