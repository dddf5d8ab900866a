"""What every command shares: configs by name, one-line errors, exit codes, signals."""

import difflib
import errno
import importlib
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict

import experiments.configs
from vhp_jax.checkpoints import CheckpointError

flags.DEFINE_bool("traceback", False, "Also show where an error came from.")

USAGE_ERROR = 2


class UserError(Exception):
    """Something the user can mend, told in one line; exit code 1."""


class UsageError(Exception):
    """A command line that cannot be understood, told in one line; exit code 2."""


class InterruptedRunError(BaseException):
    """Stopped by a signal; not an Exception, so that no handler takes it for a fault.

    The first signal ends a training after a checkpoint, a second one at once.

    Attributes:
      signum: the signal; the exit code is 128 + signum.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


# What ends a command with one line: bad input, damaged files, numbers not finite.
FAILURES = (UserError, CheckpointError, ValueError)


class StopSignal:
    """Notes Ctrl-C and SIGTERM so that the loop can stop between two chunks."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> "StopSignal":
        handled = (signal.SIGINT, signal.SIGTERM)
        self._previous = {s: signal.signal(s, self._note) for s in handled}
        return self

    def __exit__(self, *exception: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:  # asked twice: do not wait for the chunk
            _interrupt(signum, frame)
        self.signum = signum


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise InterruptedRunError(signum)


def config_names() -> list[str]:
    """Names that --config takes."""
    return sorted(m.name for m in pkgutil.iter_modules(experiments.configs.__path__))


def load_config(name: str, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The config called `name` with dotted overrides, types kept.

    Args:
      name: a module of `experiments.configs`.
      overrides: ("train.learning_rate", "3e-4") pairs.

    Raises:
      UsageError: no such config or key, or a value of another type.
    """
    if name not in config_names():
        raise UsageError(
            f"no config is called {name!r}{_nearest(name, config_names())}"
        )
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    config.lock()
    keys = dict(flatten(config))
    for key, text in overrides:
        if key not in keys:
            raise UsageError(f"config has no key {key!r}{_nearest(key, list(keys))}")
        config.update_from_flattened_dict({key: _parse(key, text, keys[key])})
    return config


def flatten(
    config: ConfigDict | dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yields ("train.learning_rate", value) for every key of a config."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _parse(key: str, text: str, current: object) -> object:
    """`text` as the type of `current`."""
    kind = type(current)
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind is tuple:
            item = type(current[0]) if current else int  # type: ignore[index]
            return tuple(item(part) for part in text.strip("()").split(",") if part)
        return kind(text)  # type: ignore[call-arg]
    except (KeyError, ValueError):
        example: object = (1000, 2000) if current == () else current
        raise UsageError(
            f"config.{key} wants {kind.__name__} such as {example!r}, got {text!r}"
        ) from None


def _nearest(word: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    tails = {name.rsplit(".", 1)[-1]: name for name in known}
    tail = word.rsplit(".", 1)[-1]
    matches += [tails[t] for t in difflib.get_close_matches(tail, tails, n=2)]
    matches = list(dict.fromkeys(matches))[:3]
    if matches:
        return f"; did you mean {' or '.join(matches)}?"
    return f"; there are: {', '.join(known)}"


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """What follows --flag= or --flag on a command line; None without."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, separator, value = word.lstrip("-").partition("=")
        if name == flag and word.startswith("-"):
            return value if separator else following
    return None


class Command:
    """An absl binary: flags, an optional --config, and a main function.

    Example:
      command = Command(__doc__, main, takes_config=True)
      if __name__ == "__main__":
          command.run()
    """

    def __init__(
        self,
        description: str | None,
        main: Callable[..., None],
        takes_config: bool = False,
    ):
        self._description = (description or "").strip()
        self._main = main
        self._takes_config = takes_config
        self._overrides: list[tuple[str, str]] = []

    def run(self) -> NoReturn:
        """Parses the command line, calls main and exits."""
        logging.set_verbosity(logging.WARNING)
        app.run(self._guarded, flags_parser=self._parse_flags)
        raise AssertionError("app.run returned")

    def _parse_flags(self, argv: list[str]) -> list[str]:
        try:
            if {"--help", "-h", "-help", "--helpfull", "--helpshort"} & set(argv):
                print(self._help(_value_of("config", argv) or "pendulum"))
                sys.exit(0)
            rest = argv[:1]
            for argument in argv[1:]:
                key, separator, value = argument.lstrip("-").partition("=")
                if self._takes_config and key.startswith("config."):
                    if not separator:
                        raise UsageError(f"--{key} wants a value: --{key}=VALUE")
                    self._overrides.append((key.removeprefix("config."), value))
                else:
                    rest.append(argument)
            extra = flags.FLAGS(rest)[1:]
            if extra:
                raise UsageError(f"unexpected argument {extra[0]!r}; flags are --X=Y")
            self._config = self._load_config()
        except (flags.Error, UsageError) as error:
            _fail(error, USAGE_ERROR)
        return argv[:1]

    def _load_config(self) -> ConfigDict | None:
        if not self._takes_config:
            return None
        return load_config(flags.FLAGS.config, self._overrides)

    def _guarded(self, argv: list[str]) -> None:
        del argv
        # As Ctrl-C: what is half done is cleared away on the way out.
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            if self._takes_config:
                self._main(self._config)
            else:
                self._main()
        except UsageError as error:
            _fail(error, USAGE_ERROR)
        except InterruptedRunError as stop:
            sys.exit(128 + stop.signum)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        except FAILURES as error:
            if flags.FLAGS.traceback:
                traceback.print_exc()
            _fail(error, 1)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            kept = "; the disk is full, what was written before stays" if full else ""
            _fail(f"{error}{kept}", 1)

    def _help(self, config: str) -> str:
        modules = (sys.modules["__main__"], sys.modules[__name__])
        own = [f for m in modules for f in flags.FLAGS.get_key_flags_for_module(m)]
        lines = [self._description, "", "Flags:"]
        for flag in own:
            lines.append(f"  --{flag.name}: {flag.help} (default: {flag.default})")
        if self._takes_config:
            lines += ["", "Configs: " + ", ".join(config_names())]
            lines += ["", f"Config keys of --config={config} (others have others):"]
            for key, value in flatten(load_config(config)):
                lines.append(f"  --config.{key}={value}")
        return "\n".join(lines)


def _fail(error: object, code: int) -> NoReturn:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
