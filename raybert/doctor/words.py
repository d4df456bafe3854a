"""The command line of the doctor: that of the job, with `doctor` before it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from raybert.config import ConfigError, Settings, describe, load, parse_value
from raybert.config.doctor import JOBS, DoctorConfig, DoctorSettings
from raybert.config.serving import ServeConfig

_OWN = {key: f"doctor.{key}" for key in DoctorSettings.model_fields}
_OWN |= {key: key for key in _OWN.values()}
_YAML = (".yaml", ".yml")


def read_words(words: Sequence[str], parse: Callable[[str, Sequence[str]], Settings]) -> DoctorConfig:
    """`[VERB] [config.yaml] [key=value ...]` as settings.

    Without a verb it is the only one that the settings fit, else the one that the name of the config file begins with. A
    file for `serve deploy` is taken for what it deploys.

    Args:
        parse: (verb, words) -> its settings, which raises ConfigError.

    Raises:
        ConfigError: settings that do not fit, or fit several verbs.
    """
    own: dict[str, Any] = {}
    rest: list[str] = []
    for word in words:
        key, found, text = word.partition("=")
        if found and key in _OWN:
            own[_OWN[key]] = parse_value(DoctorConfig, _OWN[key], text)
        else:
            rest.append(word)
    if rest and rest[0] in JOBS:
        own["doctor.verb"] = rest.pop(0)
    config = load(DoctorConfig, None, own)
    verb = config.doctor.verb
    if not rest and not verb:
        return config
    job = _deployed(rest)
    if job is None:
        verb, job = _job(verb, rest, parse)
    elif verb not in (None, "serve"):
        raise ConfigError(f"{_file(rest)} deploys a service: it is for serve, not for {verb}")
    doctor = config.doctor.model_copy(update={"verb": verb or "serve"})
    return DoctorConfig(doctor=doctor, job=job)


def _job(
    verb: str | None, words: list[str], parse: Callable[[str, Sequence[str]], Settings]
) -> tuple[str, Settings]:
    if verb:
        return verb, parse(verb, words)
    fit, errors = {}, {}
    for name in JOBS:
        try:
            fit[name] = parse(name, words)
        except ConfigError as error:
            errors[name] = error
    stem = Path(_file(words) or "").stem.partition("-")[0]
    if len(fit) == 1:
        return next(iter(fit.items()))
    if stem in fit:
        return stem, fit[stem]
    if stem in errors:
        raise errors[stem]
    say = f"say for which verb they are, as in `raybert doctor {next(iter(fit), 'embed')} ...`"
    if not fit:
        raise ConfigError(f"these settings fit no verb; {say}, to hear what does not fit it")
    raise ConfigError(f"these settings fit {', '.join(fit)}; {say}")


def _deployed(words: list[str]) -> ServeConfig | None:
    """The settings of the service in a file for `serve deploy`; None for other files."""
    file = _file(words)
    try:
        held = yaml.safe_load(Path(file).read_text()) if file else None
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError):
        return None  # the verb says what is wrong with it
    if not isinstance(held, dict) or not held.get("applications"):
        return None
    http = held.get("http_options") or {}
    where = {f"serve.{key}": http[key] for key in ("host", "port") if key in http}
    given = dict(word.partition("=")[::2] for word in words if word != file)
    values = {key: parse_value(ServeConfig, key, text) for key, text in given.items()}
    known = {key for key, _, _ in describe(ServeConfig)}
    if unknown := [key for key in values if key not in known]:
        raise ConfigError(f"unknown setting {unknown[0]!r}; see raybert serve --help for all of them")
    return load(ServeConfig, None, {**where, **(held["applications"][0].get("args") or {}), **values})


def _file(words: Sequence[str]) -> str | None:
    return next((word for word in words if word.endswith(_YAML) and "=" not in word), None)
