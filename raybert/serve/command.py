"""raybert serve: the service on this machine, or on the cluster of RAY_ADDRESS, until it is stopped."""

import logging
import os
import signal
import socket
import sys
import time

from raybert.config import ConfigError
from raybert.config.serving import ServeConfig, require_models
from raybert.corpus.models import fetch_model
from raybert.corpus.paths import absolute
from raybert.corpus.session import brings_own_ray, cores, ray_session
from raybert.encoder.folders import read_folder, resolve
from raybert.serve.keys import Keys
from raybert.serve.placement import check_fits, settle
from raybert.serve.search import open_folder

_HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
_NAME = "raybert"
LOGGING = {"encoding": "JSON", "enable_access_log": False}
"""Of replicas, which write a line a request of their own."""


def main(config: ServeConfig) -> int:
    """The command: serve until Ctrl-C or SIGTERM, then return 0.

    Raises:
        ValueError: settings that cannot be used.
        RuntimeError: the service does not start.
    """
    require_models(config)
    _check_who_may_ask(config)
    if brings_own_ray():
        _check_files(config)
        check_fits(settle(config), cores() + 1)  # as ray_session starts it
    settings = config.serve
    if settings.ingress == "haproxy":
        os.environ.update(_HAPROXY)  # read when Ray Serve is imported, here and in what Ray starts
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")
    # Ray's workers would give way to everything else, at 15
    os.environ.setdefault("RAY_worker_niceness", "0")
    port = settings.port or _free_port(settings.host)
    _check_free(settings.host, port)
    with ray_session():
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            serve.start(
                http_options={
                    "host": settings.host,
                    "port": port,
                    "keep_alive_timeout_s": 75,
                    "request_timeout_s": settings.deadline + 5,
                }
            )
            _run(config)
            _announce(config, port)
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("raybert: stopping", file=sys.stderr, flush=True)
        finally:
            for each in (signal.SIGINT, signal.SIGTERM):  # the second one must not stop the stopping
                signal.signal(each, signal.SIG_IGN)
            serve.shutdown()
    return 0


def _run(config: ServeConfig) -> None:
    from ray import serve

    from raybert.serve.app import build

    try:
        serve.run(build(absolute(config)), name=_NAME, route_prefix="/", logging_config=LOGGING)
    except RuntimeError as error:
        raise _why(error) from None


def _why(error: RuntimeError) -> Exception:
    """What the replica said, in one line: Ray Serve tells it as a trace inside a status."""
    from ray import serve

    application = serve.status().applications.get(_NAME)
    texts = [each.message for each in application.deployments.values()] if application else []
    lines = [line.strip() for text in texts for line in text.splitlines()]
    for line in reversed(lines):
        kind, found, text = line.partition(": ")
        if found and kind.rpartition(".")[2] in ("ValueError", "ConfigError"):
            return ValueError(text)
    last = next((line for line in reversed(lines) if "Error: " in line), str(error))
    return RuntimeError(f"the service does not start: {last}")


def _check_who_may_ask(config: ServeConfig) -> None:
    settings = config.serve
    if settings.keys_from or settings.anonymous is True:
        return
    if settings.anonymous is False or not settings.only_here:
        raise ConfigError(
            f"serve.host={settings.host} without keys: give serve.keys_from=env:NAME or a file of keys, or "
            "serve.anonymous=true to answer everybody"
        )


def _check_files(config: ServeConfig) -> None:
    """What the replicas on this machine will open; an error here costs no start of Ray."""
    if config.serve.keys_from:
        Keys(config.serve.keys_from)
    for served in config.served.values():
        model = served.model
        path, _ = resolve(fetch_model(model.name), model.revision, code=model.trust_remote_code)
        folder = read_folder(path)
        folder.weights()
        if config.serve.index:
            open_folder(config.serve.index, folder.digest())


def _announce(config: ServeConfig, port: int) -> None:
    host = config.serve.host
    shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
    names = ", ".join(config.served)
    print(f"raybert: {names} at http://{shown}:{port}", file=sys.stderr, flush=True)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _check_free(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"serve.port={port} on serve.host={host} cannot be used: {error.strerror}; take another"
            ) from None
