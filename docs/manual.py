"""The manual pages: docs/man/*.md, readable as they are, with the parts that the code knows filled in, and as roff.

`make manual` writes them, `python docs/manual.py --check` names what is out of date. It must not hold text of a page.
The one idea: a page is Markdown; what stands between `<!-- KIND OF -->` and `<!-- end -->` is made from the code, and
the roff from the whole.
"""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import inspect
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nfportd import __main__ as nfportd, cli as nfportctl

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs/man").glob("*.md"))
PROGRAMS = {"nfportd": nfportd.main, "nfportctl": nfportctl.main}

_GENERATED = re.compile(r"(<!-- (\w+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """The Markdown with its generated parts made anew."""
    return _GENERATED.sub(lambda found: f"{found[1]}{_KINDS[found[2]](found[3])}\n{found[4]}", text)


def _options(program: str) -> str:
    command = PROGRAMS[program]
    return _option_table(command, click.Context(command, info_name=program))


def _commands(program: str) -> str:
    """Each command of a program: how it is called, what it says with --help."""
    group = PROGRAMS[program]
    parent = click.Context(group, info_name=program)
    return "\n\n".join(_command(name, group.get_command(parent, name), parent) for name in group.list_commands(parent))


def _command(name: str, command: click.Command | None, parent: click.Context) -> str:
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent)
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    return "\n\n".join(part for part in (f"### `{usage}`", _help(command), _option_table(command, context)) if part)


def _help(command: click.Command) -> str:
    """A command's text; what click prints as it stands (after \\b) is an example with a sentence above it."""
    return "\n\n".join(map(_paragraph, inspect.cleandoc(command.help or "").split("\n\n")))


def _paragraph(text: str) -> str:
    if not text.startswith("\b"):
        return text
    head, _, rest = text.removeprefix("\b\n").partition("\n")
    return f"{head}\n\n{textwrap.indent(textwrap.dedent(rest), '    ')}"


def _option_table(command: click.Command, context: click.Context) -> str:
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    rows = [_option(each) for each in options if "--help" not in each.opts]
    return "\n".join(["| option | meaning | default |", "| --- | --- | --- |", *rows]) if rows else ""


def _option(option: click.Option) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    if isinstance(option.type, click.Choice):
        names += " " + r"\|".join(option.type.choices)
    elif not option.is_flag:
        names += f" {option.metavar or option.type.name.split()[0].upper()}"
    env = f" Or by the environment variable `{option.envvar}`." if option.envvar else ""
    default = option.default if option.show_default else None
    written = f"`{', '.join(default) if isinstance(default, tuple) else default}`" if default else ""
    return f"| `{names}` | {option.help}{env} | {written} |"


def _keys(of: str) -> str:
    """The keys of a class (`nfportd.settings:Settings`), with the text that stands under each and its default."""
    module, _, name = of.partition(":")
    made = getattr(importlib.import_module(module), name)
    rows = [f"| `{key}` | {text} | {_default(made, key)} |" for key, text in texts(made).items()]
    return "\n".join(["| key | meaning | default |", "| --- | --- | --- |", *rows])


def texts(of: type) -> dict[str, str]:
    """The string under each field of a class, on one line."""
    body = ast.parse(textwrap.dedent(inspect.getsource(of))).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=key)), ast.Expr(value=ast.Constant(value=str(text))):
                found[key] = " ".join(text.split())
    return found


def _default(of: type, key: str) -> str:
    field = of.__dict__["__pydantic_fields__"][key]
    if field.is_required():
        return "required"
    value = field.default
    if value in (None, (), ""):
        return ""
    plain = list(map(str, value)) if isinstance(value, tuple) else [str(value)]
    written = ", ".join(plain)
    return f"`{written.lower() if isinstance(value, bool) else written}`"


_KINDS = {"options": _options, "commands": _commands, "keys": _keys}


def roff(text: str) -> str:
    """The page for man(1). Tables become lists of terms; a third column is the default."""
    tokens = MarkdownIt().enable("table").parse(re.sub(r"<!--.*?-->\n?", "", text))
    lines = [r".\" Made by `make manual` from the Markdown beside it.", *_blocks(iter(tokens))]
    kept = [line for last, line in zip(["", *lines], lines, strict=False) if not (line == ".PP" and last[:2] == ".S")]
    return "\n".join(kept) + "\n"


def _blocks(tokens: Iterator[Token]) -> Iterator[str]:
    item = False
    for token in tokens:
        match token.type:
            case "heading_open":
                yield from _heading(token.tag, next(tokens))
            case "paragraph_open":
                yield from [] if item else [".PP"]
                yield _inline(next(tokens))
                item = False
            case "list_item_open":
                yield r".IP \(bu 2"
                item = True
            case "fence" | "code_block":
                yield from [
                    ".PP",
                    ".RS 4",
                    ".nf",
                    *(_guarded(_text(line)) for line in token.content.rstrip().split("\n")),
                    ".fi",
                    ".RE",
                ]
            case "table_open":
                yield from _table(tokens)


def _heading(tag: str, inline: Token) -> list[str]:
    if tag != "h1":
        return [f".SH {inline.content.upper()}" if tag == "h2" else f".SS {_inline(inline)}"]
    name, section, purpose = re.fullmatch(r"(\S+)\((\d)\) - (.*)", inline.content).groups()  # type: ignore[union-attr]
    version = importlib.metadata.version("nfportd")
    return [
        f'.TH {_text(name.upper())} {section} "" "nfportd {version}" "nfportd"',
        ".nh",
        ".ad l",
        ".SH NAME",
        rf"{_text(name)} \- {_text(purpose)}",
    ]


def _table(tokens: Iterator[Token]) -> Iterator[str]:
    """Its rows without the head, up to its end."""
    row: list[Token] = []
    head = True
    for token in tokens:
        match token.type:
            case "thead_close":
                head = False
            case "tr_open":
                row = []
            case "inline":
                row.append(token)
            case "tr_close" if not head:
                yield from _item(*row)
            case "table_close":
                return


def _item(term: Token, meaning: Token, default: Token | None = None) -> Iterator[str]:
    yield from [".TP", _inline(term), _inline(meaning)]
    if default and default.content:
        yield "Required." if default.content == "required" else f"Default: {_inline(default)}."


def _inline(token: Token) -> str:
    """One paragraph. A line must not begin like a request."""
    fonts = {
        "code_inline": r"\fB",
        "strong_open": r"\fB",
        "em_open": r"\fI",
        "strong_close": r"\fR",
        "em_close": r"\fR",
    }
    found = ""
    for each in token.children or []:
        match each.type:
            case "text":
                found += _text(each.content)
            case "softbreak":
                found += " "
            case "code_inline":
                found += rf"\fB{_text(each.content)}\fR"
            case kind:
                found += fonts.get(kind, "")
    return "\n".join(map(_guarded, textwrap.wrap(found, 100, break_long_words=False, break_on_hyphens=False)))


def _text(text: str) -> str:
    for plain, escaped in (("\\", r"\e"), ("-", r"\-"), ("'", r"\(aq"), ("`", r"\(ga"), ("^", r"\(ha"), ("~", r"\(ti")):
        text = text.replace(plain, escaped)
    return text


def _guarded(line: str) -> str:
    return rf"\&{line}" if line.startswith((".", "'")) else line


def made() -> Iterable[tuple[Path, str]]:
    """Every file that is made, with its content."""
    for page in PAGES:
        text = fill(page.read_text())
        yield page, text
        yield page.with_suffix(""), roff(text)
    readme = ROOT / "README.md"
    yield readme, fill(readme.read_text())


def main() -> int:
    """Write the pages, or with --check name those that are out of date."""
    stale = [(path, text) for path, text in made() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        print(f"{path.relative_to(ROOT)}: {'is out of date; run make manual' if '--check' in sys.argv else 'written'}")
        if "--check" not in sys.argv:
            path.write_text(text)
    return int(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
