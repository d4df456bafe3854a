"""The `raybert` command: raybert VERB [config.yaml] [positional ...] [key=value ...]."""

import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from raybert import config as settings
from raybert.config.doctor import DoctorConfig

_SETTING = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)=(.*)", re.DOTALL)


class Verb(NamedTuple):
    """What a word on the command line runs."""

    config: type[settings.Settings]
    module: str
    positional: tuple[str, ...]
    usage: str


VERBS = {
    "embed": Verb(settings.EmbedConfig, "raybert.embed", (), "[config.yaml] [key=value ...]"),
    "prepare": Verb(settings.PrepareConfig, "raybert.prepare", (), "[config.yaml] [key=value ...]"),
    "finetune": Verb(settings.FinetuneConfig, "raybert.finetune", (), "[config.yaml] [key=value ...]"),
    "predict": Verb(settings.PredictConfig, "raybert.predict", (), "[config.yaml] [key=value ...]"),
    "evaluate": Verb(
        settings.EvaluateConfig, "raybert.evaluate.evaluate", (), "[config.yaml] [key=value ...]"
    ),
    "probe": Verb(settings.ProbeConfig, "raybert.probe", (), "[config.yaml] [key=value ...]"),
    "pretrain": Verb(settings.PretrainConfig, "raybert.train.pretrain", (), "[config.yaml] [key=value ...]"),
    "vocabulary": Verb(settings.VocabularyConfig, "raybert.vocabulary", (), "[config.yaml] [key=value ...]"),
    "doctor": Verb(
        DoctorConfig, "raybert.doctor.command", (), "[VERB] [config.yaml] [key=value ...] [format=json]"
    ),
    "verify": Verb(settings.VerifyConfig, "raybert.verify", ("data.path",), "FOLDER"),
    "serve": Verb(settings.ServeConfig, "raybert.serve.command", (), "[config.yaml] [key=value ...]"),
    "search": Verb(
        settings.SearchConfig,
        "raybert.search",
        ("data.path", "search.query"),
        "FOLDER [QUERY] [key=value ...]",
    ),
}


_EXTRAS = {"serve": "serve"}  # of pyproject.toml, that verbs need


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns 0, 1 for a failed run, 2 for settings or input that must be changed first."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _show(_overview())
    name, *rest = arguments
    if name == "--version":
        from raybert import __version__

        print(f"raybert {__version__}")
        return 0
    if name not in VERBS:
        near = settings.nearest(name, list(VERBS))
        return _fail(
            f"unknown verb {name!r}" + (f"; did you mean {near!r}?" if near else "; see raybert --help"), 2
        )
    if "-h" in rest or "--help" in rest:
        return _show(_verb_help(name))
    from raybert.corpus.session import Terminated, terminate

    signal.signal(signal.SIGTERM, terminate)
    try:
        config = parse(name, rest)
        module = import_module(VERBS[name].module)
        return module.main(config)
    except ModuleNotFoundError as error:
        if name not in _EXTRAS:
            raise
        what = f"pip install 'raybert[{_EXTRAS[name]}]' brings it"
        return _fail(f"raybert {name} needs what is not installed ({error}); {what}", 2, debug=True)
    except ValueError as error:  # bad settings or input: one line, no trace
        return _fail(str(error), 2, debug=not isinstance(error, settings.ConfigError))
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        return _fail("stopped; run the same command again to go on", code)
    except (RuntimeError, OSError) as error:
        return _fail(str(error) or type(error).__name__, 1, debug=True)


def parse(verb: str, arguments: Sequence[str]) -> settings.Settings:
    """Settings of `verb` from the words after it.

    Raises:
        ConfigError: a word that is neither a setting, a YAML file nor an expected positional.
    """
    if verb == "doctor":
        from raybert.doctor.words import read_words

        return read_words(arguments, parse)
    kind, _, positional, usage = VERBS[verb]
    known = [key for key, _, _ in settings.describe(kind)]
    file, values, waiting = None, {}, list(positional)
    for word in arguments:
        match = _SETTING.fullmatch(word)
        if match:
            # a verb's own group may be left out: `raybert search ... k=5` is search.k=5
            key = f"{verb}.{match[1]}" if f"{verb}.{match[1]}" in known else match[1]
            values[key] = settings.parse_value(kind, key, match[2])
        elif word.endswith((".yaml", ".yml")) and " " not in word and file is None:
            file = word
        elif waiting:
            values[waiting.pop(0)] = word
        else:
            raise settings.ConfigError(f"cannot use {word!r}: raybert {verb} {usage}")
    return settings.load(kind, file, values)


def _overview() -> str:
    lines = ["raybert VERB [config.yaml] [key=value ...]", ""]
    lines += [f"  {name:10} {verb.config.__doc__.partition(': ')[2]}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "raybert VERB --help lists every setting with its default and meaning."])


def _verb_help(name: str) -> str:
    verb = VERBS[name]
    rows = list(settings.describe(verb.config))
    width = max(len(key) for key, _, _ in rows)
    lines = [verb.config.__doc__, "", f"usage: raybert {name} {verb.usage}", ""]
    for key, default, meaning in rows:
        shown = f" [{default}]" if default not in ("", "null", "[]", "{}") else ""
        lines.append(f"  {key:{width}}  {meaning}{shown}")
    return "\n".join(
        [
            *lines,
            "",
            "Values are JSON where that fits, else text: workers.count=[1,4] data.path=docs/*.parquet",
        ]
    )


def _show(text: str) -> int:
    """Print; a reader that has seen enough (`| head`) is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug and os.environ.get("RAYBERT_DEBUG"):
        raise
    print(f"raybert: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
