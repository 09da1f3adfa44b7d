"""Where a setting comes from: flag, then environment, then `config.toml`, then the default.

`config.toml` lies in the home and takes `network`, `tuning`, `bootstrap`, `listen`, `lan`, `timeout` and
what begins with `gateway`; a `home` key is read from the per-user config directory only, and is the only
one there, for it says where the rest is. An unknown key is an error that names file, line and what was
probably meant, since a misspelt setting that is ignored costs an evening. Each setting remembers where
it came from.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import platformdirs

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import PUBLIC_NETWORK, check_network
from modelnet_p2p.node.disk.files import read_bounded, reason
from modelnet_p2p.node.disk.home import Home

APP = "modelnet"
DEFAULT_TIMEOUT = 30.0  # seconds
DEFAULT_TUNING = "lan"
MAX_CONFIG_BYTES = 64 * 1024
KEYS: dict[str, type] = {
    "home": str,
    "network": str,
    "tuning": str,
    "timeout": float,
    "lan": bool,
    "bootstrap": list,
    "listen": list,
    "gateway": str,
    "gateway_key_file": str,
    "gateway_origins": list,
}
GATEWAY_ON = "on"  # the flag alone: where another place says, or at the usual address
GATEWAY_OFF = "off"  # for one command, where another place says that there is one
DEFAULT_ORIGIN = "default"
USUAL_GATEWAY = "127.0.0.1:8765"


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
    gateway: str | None = None  # HOST:PORT of the HTTP gateway, None: there is none
    gateway_key_file: Path | None = None
    gateway_origins: tuple[str, ...] = ()
    # where each value came from: a flag, a variable, `FILE:LINE` or `default`
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


def load_settings(
    *,
    home: str | None = None,
    network: str | None = None,
    bootstrap: tuple[str, ...] = (),
    listen: tuple[str, ...] = (),
    lan: bool = False,
    timeout: float | None = None,
    gateway: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of one command from its flags; LocalError for a bad value, naming its place."""
    env = os.environ if environ is None else environ
    where, home_origin = find_home(home, env)
    path = where.config_path
    config = read_config(path)
    if "home" in config:
        raise _bad(path, f"'home' belongs into {user_config_path()}", line=_line_of(path, "home"))
    origins = {"home": home_origin}

    def chosen(name: str, flag: Any, variable: Any, default: Any) -> Any:  # Any: of the setting's type
        places = (
            (f"--{name}", flag),
            (f"MODELNET_{name.upper()}", variable),
            (_place(path, name), config.get(name)),
        )
        found = next(((origin, value) for origin, value in places if value not in (None, "", (), [])), None)
        origins[name], value = found or (DEFAULT_ORIGIN, default)
        return value

    seconds = chosen("timeout", timeout, None, DEFAULT_TIMEOUT)
    if not 0 < seconds < 1e6:
        raise LocalError(Code.BAD_INPUT, "a timeout is a number of seconds above 0", hint="--timeout 30")
    network = check_network(chosen("network", network, env.get("MODELNET_NETWORK"), PUBLIC_NETWORK))
    listen = tuple(chosen("listen", listen, _split(env.get("MODELNET_LISTEN")), ()))
    alone = gateway == GATEWAY_ON
    place = chosen("gateway", None if alone else gateway, env.get("MODELNET_GATEWAY"), None)
    if alone and place in (None, GATEWAY_ON, GATEWAY_OFF):
        origins["gateway"], place = "--gateway", USUAL_GATEWAY
    key_file = chosen("gateway_key_file", None, env.get("MODELNET_GATEWAY_KEY_FILE"), None)
    return Settings(
        home=where,
        network=network,
        tuning=chosen("tuning", None, env.get("MODELNET_TUNING"), DEFAULT_TUNING),
        bootstrap=tuple(chosen("bootstrap", bootstrap, _split(env.get("MODELNET_BOOTSTRAP")), ())),
        listen=listen or None,
        lan=chosen("lan", lan or None, None, False),
        timeout=float(seconds),
        timeout_asked=origins["timeout"] != DEFAULT_ORIGIN,
        network_asked=origins["network"] in ("--network", "MODELNET_NETWORK"),
        origins=origins,
        gateway={GATEWAY_OFF: None, GATEWAY_ON: USUAL_GATEWAY}.get(place, place),
        gateway_key_file=Path(key_file).expanduser().absolute() if key_file else None,
        gateway_origins=tuple(
            chosen("gateway_origins", None, _split(env.get("MODELNET_GATEWAY_ORIGINS")), ())
        ),
    )


def locate_home(flag: str | None, environ: Mapping[str, str]) -> Home:
    """--home, MODELNET_HOME, `home` of the user's config.toml, or the platform's place for data."""
    return find_home(flag, environ)[0]


def find_home(flag: str | None, environ: Mapping[str, str]) -> tuple[Home, str]:
    """The home, and where its name came from."""
    if flag:
        return Home(flag), "--home"
    if chosen := environ.get("MODELNET_HOME"):
        return Home(chosen), "MODELNET_HOME"
    path = user_config_path()
    config = read_config(path)
    for key in config:
        if key != "home":
            home = Home(config.get("home", _default_home()))
            raise _bad(path, f"{key!r} belongs into {home.config_path}", line=_line_of(path, key))
    if "home" in config:
        return Home(config["home"]), _place(path, "home")
    return Home(_default_home()), DEFAULT_ORIGIN


def _default_home() -> Path:
    return platformdirs.user_data_path(APP, appauthor=False)


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
        if key not in KEYS:
            raise _unknown(path, key)
        if not _fits(value, KEYS[key]):
            why = f"{key!r} must be a {_WORDS[KEYS[key]]}"
            raise _bad(path, why, hint=f"such as: {key} = {_EXAMPLES[KEYS[key]]}", line=_line_of(path, key))
    return config


def _unknown(path: Path, key: str) -> LocalError:
    from difflib import get_close_matches  # a failing start may take a millisecond more, others not

    near = get_close_matches(key.lower(), KEYS, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    takes = [name for name in KEYS if name != "home"] if path != user_config_path() else ["home"]
    hint = f"edit {quote(str(path))}: it takes {', '.join(takes)}"
    return _bad(path, f"there is no setting {key[:40]!r}{meant}", hint=hint, line=_line_of(path, key))


def _line_of(path: Path, key: str) -> int:
    """The line on which a key or a table of that name is set, 0 if it is written in another way."""
    try:
        text = read_bounded(path, MAX_CONFIG_BYTES, follow=True)[0].decode()
    except (OSError, ValueError):
        return 0  # it was changed this moment: only the line's number is lost
    name = re.escape(key)
    pattern = re.compile(rf"""\s*\[{{0,2}}\s*["']?{name}["']?\s*[\]=.]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 0)


def _place(path: Path, key: str) -> str:
    line = _line_of(path, key)
    return f"{path}:{line}" if line else str(path)


_WORDS = {str: "string", float: "number", bool: "true or false", list: "list of strings"}
_EXAMPLES = {str: '"text"', float: "30", bool: "true", list: '["/ip4/192.0.2.7/tcp/4001"]'}


def _fits(value: object, kind: type) -> bool:
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is list:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, kind)


def user_config_path() -> Path:
    """The user's own config.toml, which may name the home."""
    return platformdirs.user_config_path(APP, appauthor=False) / "config.toml"


def _split(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _bad(path: Path, why: str, hint: str = "", line: int = 0) -> LocalError:
    where = f"{path}, line {line}" if line else str(path)
    return LocalError(Code.BAD_STATE, f"cannot use {where}: {why}", hint=hint or f"edit {quote(str(path))}")
