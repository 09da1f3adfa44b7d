"""Settings: flag over environment over config.toml over default."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.config import Settings, load_settings
from modelnet_p2p.node.disk.home import Home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    return Home(tmp_path / "home")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_defaults(home: Home) -> None:
    assert load_settings(home=str(home.path), environ={}) == Settings(home)


def test_each_place_wins_over_the_next(home: Home) -> None:
    toml = 'network = "t"\ntuning = "wan"\ntimeout = 5\nlan = true\nbootstrap = ["/t"]\nlisten = ["/t"]\n'
    write(home.config_path, toml)
    env = {"MODELNET_HOME": str(home.path)}
    from_file = load_settings(environ=env)
    assert not from_file.network_asked
    assert from_file == Settings(home, "t", "wan", ("/t",), ("/t",), True, 5.0, True)
    env |= {"MODELNET_NETWORK": "e", "MODELNET_TUNING": "test", "MODELNET_BOOTSTRAP": "/e1, /e2,"}
    from_env = load_settings(environ=env)
    assert (from_env.network, from_env.tuning, from_env.bootstrap) == ("e", "test", ("/e1", "/e2"))
    from_flag = load_settings(environ=env, network="f", bootstrap=("/f",), listen=("/f",), timeout=1.0)
    assert (from_flag.network, from_flag.bootstrap, from_flag.listen, from_flag.timeout) == (
        "f", ("/f",), ("/f",), 1.0,
    )  # fmt: skip


def test_the_users_config_names_the_home(home: Home, tmp_path: Path) -> None:
    write(tmp_path / "user" / "modelnet" / "config.toml", f'home = "{home.path}"')
    assert load_settings(environ={}).home == home
    assert load_settings(environ={"MODELNET_HOME": "/elsewhere"}).home == Home("/elsewhere")


@pytest.mark.parametrize("text", ["timeout = true", "bootstrap = [1]", 'home = "/x"', "a = ", "lan = 1"])
def test_what_does_not_fit_is_named(home: Home, text: str) -> None:
    write(home.config_path, text)
    with pytest.raises(LocalError, match=str(home.config_path)) as caught:
        load_settings(home=str(home.path), environ={})
    assert caught.value.code is Code.BAD_STATE


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_timeouts_are_above_zero(home: Home, timeout: float) -> None:
    with pytest.raises(LocalError):
        load_settings(home=str(home.path), timeout=timeout, environ={})


def test_a_misspelt_setting_is_named_with_its_line_and_what_was_meant(home: Home) -> None:
    write(home.config_path, '# mine\n\nnetwrok = "x"\n')
    with pytest.raises(
        LocalError, match=r"config\.toml, line 3: .*'netwrok'; did you mean 'network'"
    ) as caught:
        load_settings(home=str(home.path), environ={})
    assert caught.value.hint.startswith(f"edit {home.config_path}")
    assert "home" not in caught.value.hint.rpartition("takes")[2]


@pytest.mark.parametrize(("text", "line"), [('"timeout" = "5"', 1), ("\n[timeout]\nx = 1", 2)])
def test_a_wrong_value_is_named_with_its_line(home: Home, text: str, line: int) -> None:
    write(home.config_path, text)
    with pytest.raises(LocalError, match=f"line {line}: 'timeout' must be a number") as caught:
        load_settings(home=str(home.path), environ={})
    assert "timeout = 30" in caught.value.hint


def test_a_setting_that_nobody_would_read_is_an_error(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "user" / "modelnet" / "config.toml"
    write(path, f'home = "{home.path}"\nnetwork = "x"\n')
    with pytest.raises(LocalError, match=f"line 2: 'network' belongs into {home.config_path}"):
        load_settings(environ={})


def test_each_setting_knows_where_it_came_from(home: Home) -> None:
    write(home.config_path, '# mine\ntuning = "wan"\nlan = false\nlisten = []\n')
    env = {"MODELNET_HOME": str(home.path), "MODELNET_BOOTSTRAP": "/e"}
    settings = load_settings(environ=env, network="f")
    assert settings.origins == {
        "home": "MODELNET_HOME",
        "network": "--network",
        "tuning": f"{home.config_path}:2",
        "lan": f"{home.config_path}:3",
        "bootstrap": "MODELNET_BOOTSTRAP",
        "listen": "default",
        "timeout": "default",
        "gateway": "default",
        "gateway_key_file": "default",
        "gateway_origins": "default",
    }


@pytest.mark.parametrize(
    ("flag", "variable", "line", "meant"),
    [
        (None, "", "", None),
        ("on", "", "", "127.0.0.1:8765"),
        ("on", "", 'gateway = "127.0.0.1:9"', "127.0.0.1:9"),
        ("on", "off", "", "127.0.0.1:8765"),
        (None, "on", "", "127.0.0.1:8765"),
        (":7", ":8", 'gateway = ":9"', ":7"),
        (None, "off", 'gateway = ":9"', None),
    ],
)
def test_where_a_gateway_is_asked_for(
    home: Home, flag: str | None, variable: str, line: str, meant: str | None
) -> None:
    write(home.config_path, line)
    env = {"MODELNET_GATEWAY": variable}
    assert load_settings(home=str(home.path), gateway=flag, environ=env).gateway == meant
