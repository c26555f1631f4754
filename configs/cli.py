"""The ``imagine`` command line: a table of commands, one parser, one way to answer and one way to fail.

Standard output carries the answer alone (a table, or with ``--json`` one object); all else goes to standard error.
Exit codes: 0 done, 2 the request was wrong or a file cannot be written (one sentence says why), 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from imagine.configs.vocabulary import BY_DEFAULT, COMMANDS, FORMER, FORMER_OPTIONS, FORMER_VALUES, GROUPS

MOST_LISTED = 8  # entries of a list that a person wants to read
FULL = "make room and run the same command again; what is finished is kept"
REFUSED = "choose another folder with --out, or have this one made writable"
MISPLACED = "choose another --out"
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), REFUSED),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG), MISPLACED),
    **dict.fromkeys((errno.EIO, errno.ENXIO, errno.ESTALE, errno.EMFILE, errno.ENFILE), "look at this machine's disks"),
}
"""What to do about an error of the system; others are bugs of ours."""


class BadRequest(ValueError):
    """The command line itself is wrong; the message is the sentence to show."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``imagine`` command.

    Args:
        argv: words after ``imagine``; those of this process when None.

    Returns:
        The exit code: 0 done, 2 bad request, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--version"]:
        print(import_module("imagine").__version__)
        return 0
    if (shown := overview(words)) is not None:
        print(shown)
        return 0
    try:
        name, options = command(words)
        module = module_of(name)
        args = parse(module, name, options)
        with _terminated_as_interrupted(), _stdout_kept_clean():
            result = module.run(args)
    except KeyboardInterrupt:
        return _complain("interrupted; resume with the same command", 130)
    except ModuleNotFoundError as error:
        from imagine.extras import explained  # torch comes with it; not wanted before something is wrong

        if (missing := explained(error)) is None:
            raise
        return _complain(str(missing), 2)
    except OSError as error:
        if error.errno not in ADVICE:
            raise
        what = error.filename or "a file of this run"
        return _complain(f"cannot write or read {what} ({os.strerror(error.errno)}); {ADVICE[error.errno]}", 2)
    except ValueError as error:
        if not isinstance(error, BadRequest) and not _is_imagine_error(error):
            raise
        return _complain(str(error), 2)
    answer(name, result, as_json=args.json)
    return 0


def overview(words: Sequence[str] = ()) -> str | None:
    """What ``imagine --help`` prints, or ``imagine evaluate --help``; needs no library. None for other words."""
    asked = [word for word in words if word not in ("-h", "--help")]
    if len(asked) == len(words) > 0 or asked not in ([], *([word] for word in _families())):
        return None
    wanted = {group: [n for n in names if n.split()[: len(asked)] == asked] for group, names in GROUPS.items()}
    rows = [
        f"{'' if i else group:<10}{name:<22}{COMMANDS[name]}"
        for group, names in wanted.items()
        for i, name in enumerate(names)
    ]
    default = (
        f"\nimagine {asked[0]} alone is imagine {asked[0]} {BY_DEFAULT[asked[0]]}."
        if asked[-1:] == [*BY_DEFAULT]
        else ""
    )
    return (
        f"usage: imagine {' '.join([*asked, 'COMMAND'])} [OPTIONS]\n\n"
        "One joint world-action model: a robot's policy, and the gym in which it is improved.\n\n"
        + "\n".join(rows)
        + f"\n\nimagine COMMAND --help lists its options. Every command takes --out, --seed and --json.{default}"
    )


def parse(module: ModuleType, name: str, words: Sequence[str]) -> Any:
    """Turn words into the command's ``Args``.

    Raises:
        BadRequest: an option is unknown, lacks its value, or has one of the wrong type.
    """
    words = renamed(name, words)
    if (parsed := _parsed(module, name, words)) is None:
        raise BadRequest(f"{_culprit(module, name, words)}; see imagine {name} --help")
    args, unknown = parsed
    if unknown:
        options = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(module.Args)]
        options.append("--help")
        close = suggestion(unknown[0], options)
        raise BadRequest(f"imagine {name} has no option {unknown[0]!r}{close}; see imagine {name} --help")
    return args


def renamed(name: str, words: Sequence[str]) -> list[str]:
    """Words with the last version's options and values under their new names; a hint on standard error for each."""
    out: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        new = FORMER_OPTIONS.get(name, {}).get(flag.replace("_", "-"), flag) + equals
        if equals:
            new += FORMER_VALUES.get((new.rstrip("="), value), value)
        elif out:
            new = FORMER_VALUES.get((out[-1], new), new)
        if new != word:
            _hint(word, new)
        out.append(new)
    return out


def _parsed(module: ModuleType, name: str, words: Sequence[str]) -> tuple[Any, list[str]] | None:
    """``Args`` and the words that no option of it took; None where a value is missing or of the wrong type."""
    import tyro

    wants_help = {"-h", "--help"} & set(words)
    try:
        with contextlib.nullcontext() if wants_help else contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(
                module.Args, prog=f"imagine {name}", args=list(words), config=(tyro.conf.FlagCreatePairsOff,),
                return_unknown_args=True,
            )  # fmt: skip
    except SystemExit:
        if wants_help:
            raise
        return None


def _culprit(module: ModuleType, name: str, words: Sequence[str]) -> str:
    """Which option it was that cannot be parsed: the first one that cannot be by itself."""
    starts = [i for i, word in enumerate(words) if word.startswith("--")]
    for begin, end in zip(starts, [*starts[1:], len(words)], strict=True):
        if _parsed(module, name, words[begin:end]) is None:
            option, _, value = " ".join(words[begin:end]).replace("=", " ", 1).partition(" ")
            field = option.removeprefix("--").replace("-", "_")
            kind = {f.name: str(f.type) for f in dataclasses.fields(module.Args)}.get(field, "another value")
            return f"{option} is {value!r}, expected {kind}" if value else f"{option} lacks its value"
    return f"imagine {name} cannot read {' '.join(words)!r}"


def suggestion(word: str, known: Sequence[str]) -> str:
    """`` (did you mean 'x'?)`` where something known looks like ``word``, else nothing."""
    close = difflib.get_close_matches(word.split("=")[0], known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def answer(name: str, result: dict[str, Any], *, as_json: bool) -> None:
    """Print a command's result on standard output: one JSON object, or a table."""
    from imagine.configs.runfolder import plain

    result = plain(result)
    if as_json:
        print(json.dumps(result, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False, title=f"imagine {name}", title_justify="left")
    for key, value in result.items():
        table.add_row(key.replace("_", " "), readable(value))
    Console().print(table)


def readable(value: Any) -> str:
    """What a person wants to see of a result: intervals as such, one line per entry, and no long lists."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        rest, lines = dict(value), []
        main = next((k for k in ("value", "success_rate") if k in rest), None)
        if main is not None and {"ci_low", "ci_high"} <= set(rest):
            point, low, high, n = (rest.pop(k, None) for k in (main, "ci_low", "ci_high", "n"))
            span = "no interval" if low is None or high is None else f"[{low:.3g}, {high:.3g}]"
            lines = [f"{readable(point)} {span}" + ("" if n is None else f", n = {n}")]
        lines += [f"{k.replace('_', ' ')}: {_indented(readable(v))}" for k, v in rest.items()]
        return "\n".join(lines)
    if isinstance(value, list) and (len(value) > MOST_LISTED or any(isinstance(v, list | dict) for v in value)):
        return f"a list of {len(value)}, see --json"
    return value if isinstance(value, str) else json.dumps(value)


def _indented(text: str) -> str:
    return text if "\n" not in text else "\n  " + text.replace("\n", "\n  ")


def command(words: Sequence[str]) -> tuple[str, list[str]]:
    """A command's name, of one word or two, and the words after it.

    Raises:
        BadRequest: there is no such command.
    """
    first, *rest = words
    if first in FORMER:
        _hint(f"imagine {first}", f"imagine {FORMER[first]}")
        return FORMER[first], rest
    if first in COMMANDS:
        return first, rest
    if first not in (families := _families()):
        known = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
        meant = next((f" (did you mean {name!r}?)" for name in COMMANDS if name.split()[-1] == first), None)
        close = suggestion(first, [*known, *FORMER]) if meant is None else meant
        raise BadRequest(f"imagine has no command {first!r}{close}; the commands are {', '.join(known)}")
    if not rest or rest[0].startswith("-"):
        rest = [BY_DEFAULT.get(first, ""), *rest]
    if rest[0] not in (known := families[first]):
        got = f"has no {rest[0]!r}{suggestion(rest[0], known)}; expected" if rest[0] else "wants to know what:"
        raise BadRequest(f"imagine {first} {got} {', '.join(known[:-1])} or {known[-1]}")
    return f"{first} {rest[0]}", rest[1:]


def module_of(name: str) -> ModuleType:
    """The module that runs a command."""
    return import_module("imagine.configs.commands." + name.replace(" ", "_").replace("-", "_"))


def _families() -> dict[str, list[str]]:
    """Second words by first word, of the commands that have two."""
    found: dict[str, list[str]] = {}
    for name in COMMANDS:
        if " " in name:
            found.setdefault(name.split()[0], []).append(name.split()[1])
    return found


def _hint(old: str, new: str) -> None:
    print(f"imagine: {old} is {new!r} now; the old name goes with the next version.", file=sys.stderr)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM end a command as Ctrl-C does; only the main thread may say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send what the command, its libraries and its worker processes print to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _is_imagine_error(error: ValueError) -> bool:
    from imagine.policy.wire import WireError  # of the client, which knows no torch and so not our errors
    from imagine.types import ImagineError

    return isinstance(error, ImagineError | WireError)


def _complain(sentence: str, code: int) -> int:
    print(f"imagine: {sentence.rstrip('.')}.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
