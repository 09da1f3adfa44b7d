"""Where a setting comes from: flag, then environment, then `config.toml`, then the default.

`config.toml` lies in the home and takes `network`, `tuning`, `bootstrap`, `listen`, `lan` and
`timeout`; a `home` key is read from the per-user config directory only, for it says where the
rest is. An unknown key is an error, since a misspelt setting that is ignored costs an evening.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import platformdirs

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import PUBLIC_NETWORK, check_network
from modelnet_p2p.node.files import read_bounded, reason
from modelnet_p2p.node.home import Home

APP = "modelnet"
DEFAULT_TIMEOUT = 30.0  # seconds
DEFAULT_TUNING = "lan"
MAX_CONFIG_BYTES = 64 * 1024
_KEYS: dict[str, type] = {
    "home": str,
    "network": str,
    "tuning": str,
    "timeout": float,
    "lan": bool,
    "bootstrap": list,
    "listen": list,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What one command runs with. `listen` None is the default address, `()` a client."""

    home: Home
    network: str = PUBLIC_NETWORK
    tuning: str = DEFAULT_TUNING
    bootstrap: tuple[str, ...] = ()
    listen: tuple[str, ...] | None = None
    lan: bool = False
    timeout: float = DEFAULT_TIMEOUT
    timeout_asked: bool = False  # by a flag or the file, rather than the default
    network_asked: bool = False  # by a flag or the environment: a peer of another one is not asked


def load_settings(
    *,
    home: str | None = None,
    network: str | None = None,
    bootstrap: tuple[str, ...] = (),
    listen: tuple[str, ...] = (),
    lan: bool = False,
    timeout: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of one command from its flags; LocalError for a bad value, naming its place."""
    env = os.environ if environ is None else environ
    where = locate_home(home, env)
    path = where.config_path
    config = read_config(path)
    if "home" in config:
        raise _bad(path, f"'home' belongs into {_user_config_path()}")
    chosen_timeout = timeout if timeout is not None else config.get("timeout")
    if chosen_timeout is not None and not 0 < chosen_timeout < 1e6:
        raise LocalError(Code.BAD_INPUT, "a timeout is a number of seconds above 0", hint="--timeout 30")
    asked_network = network or env.get("MODELNET_NETWORK")
    return Settings(
        home=where,
        network=check_network(asked_network or config.get("network", PUBLIC_NETWORK)),
        tuning=env.get("MODELNET_TUNING") or config.get("tuning", DEFAULT_TUNING),
        bootstrap=bootstrap or _split(env.get("MODELNET_BOOTSTRAP")) or tuple(config.get("bootstrap", ())),
        listen=listen or _split(env.get("MODELNET_LISTEN")) or tuple(config.get("listen", ())) or None,
        lan=lan or config.get("lan", False),
        timeout=DEFAULT_TIMEOUT if chosen_timeout is None else float(chosen_timeout),
        timeout_asked=chosen_timeout is not None,
        network_asked=bool(asked_network),
    )


def locate_home(flag: str | None, environ: Mapping[str, str]) -> Home:
    """--home, MODELNET_HOME, `home` of the user's config.toml, or the platform's place for data."""
    chosen = flag or environ.get("MODELNET_HOME")
    if chosen:
        return Home(chosen)
    path = _user_config_path()
    config = read_config(path)
    if "home" in config:
        return Home(config["home"])
    return Home(platformdirs.user_data_path(APP, appauthor=False))


def read_config(path: Path) -> dict[str, Any]:  # Any: a key has the type that _KEYS gives, checked here
    """The settings in a config.toml, none if there is no such file; LocalError (bad-state) naming it."""
    try:
        text = read_bounded(path, MAX_CONFIG_BYTES, follow=True)[0].decode()
        config = tomllib.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise _bad(path, reason(error)) from error
    except (ValueError, RecursionError) as error:
        raise _bad(path, " ".join(str(error).split())[:200]) from error
    for key, value in config.items():
        if key not in _KEYS:
            raise _bad(path, f"it has no setting {key[:40]!r}", hint=f"it takes {', '.join(_KEYS)}")
        if not _fits(value, _KEYS[key]):
            raise _bad(path, f"{key!r} must be a {_WORDS[_KEYS[key]]}")
    return config


_WORDS = {str: "string", float: "number", bool: "true or false", list: "list of strings"}


def _fits(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)


def _user_config_path() -> Path:
    return platformdirs.user_config_path(APP, appauthor=False) / "config.toml"


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _bad(path: Path, why: str, hint: str = "") -> LocalError:
    return LocalError(Code.BAD_STATE, f"cannot use {path}: {why}", hint=hint or f"edit {quote(str(path))}")
