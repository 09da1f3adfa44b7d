"""Who may ask the gateway, and where it may listen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.gateway.gate import is_own_host
from modelnet_p2p.node.gateway.settings import GatewaySettings, check_origin, find_key, parse_listen

KEY = "0123456789abcdef"
PAGE = "https://chat.example.org"
# Any: the fixtures, see the two conftest.py
OpenTown = Any
OpenClient = Any


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9", ("127.0.0.1", 9)),
        (":9", ("127.0.0.1", 9)),
        ("9", ("127.0.0.1", 9)),
        ("localhost", ("127.0.0.1", 8765)),
        ("http://localhost:0/", ("127.0.0.1", 0)),
        ("[::1]:9", ("::1", 9)),
        ("::1", ("::1", 8765)),
        ("0.0.0.0", ("0.0.0.0", 8765)),
    ],
)
def test_where_it_listens(text: str, place: tuple[str, int]) -> None:
    assert parse_listen(text) == place


@pytest.mark.parametrize("text", ["example.org", "127.0.0.1:70000", ":x", ":-1", "1.2.3.4.5:6", ":\u0661"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(LocalError, match="HOST:PORT"):
        parse_listen(text)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_nothing_but_loopback_without_a_key(host: str) -> None:
    with pytest.raises(LocalError, match="no key") as caught:
        GatewaySettings(host)
    assert caught.value.code is Code.UNSAFE
    assert KEY not in repr(GatewaySettings(host, key=KEY))


def test_a_key_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(LocalError, match="fewer than 16"):
        GatewaySettings(key="secret")


def test_the_key_is_of_the_environment_or_of_a_private_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.key"
    assert find_key({}, None) is None
    with pytest.raises(LocalError, match=str(path)):
        find_key({}, path)
    path.write_text(f"{KEY}\n")
    path.chmod(0o644)
    with pytest.raises(LocalError, match="other users may read it") as caught:
        find_key({}, path)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    assert find_key({}, path) == KEY
    assert find_key({"MODELNET_GATEWAY_KEY": "another"}, path) == "another"


@pytest.mark.parametrize("origin", ["*", "null", "https://a.org/", "a.org", "https://", "ftp://a.org", ""])
def test_an_origin_is_one_and_whole(origin: str) -> None:
    with pytest.raises(LocalError):
        check_origin(origin)
    assert check_origin("http://localhost:3000")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:1", "127.0.0.1:8765", "[::1]:8765", "127.9.9.9", "A.localhost"]
)
def test_names_of_this_machine(host: str) -> None:
    assert is_own_host(host.encode())


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8765", "localhost.evil.example", "192.0.2.7", "\0"]
)
def test_names_that_another_may_point_here(host: str) -> None:
    assert not is_own_host(host.encode())


async def test_a_page_of_another_site_may_not_ask(open_town: OpenTown, open_client: OpenClient) -> None:
    async with open_town() as town, open_client(await town.peer("alice")) as client:
        assert (await client.get("/healthz")).status == 200
        rebound = await client.get("/healthz", host="evil.example:8765")
        assert (rebound.status, rebound.json()["error"]["code"]) == (421, "foreign_host")
        for origin in (PAGE, "null", "http://localhost:3000"):
            refused = await client.get("/healthz", origin=origin)
            assert (refused.status, refused.json()["error"]["code"]) == (403, "foreign_origin")
            assert "access-control-allow-origin" not in refused.headers
        assert (await client.get("/healthz", sec_fetch_site="cross-site")).status == 403
        assert (await client.get("/healthz", origin="http://127.0.0.1:8765")).status == 200  # its own page
        assert (await client.ask("OPTIONS", "/v1/models", headers={"origin": PAGE})).status == 403


async def test_a_page_that_was_allowed_may_ask(open_town: OpenTown, open_client: OpenClient) -> None:
    async with open_town() as town, open_client(await town.peer("alice"), origins=(PAGE,)) as client:
        answer = await client.get("/healthz", origin=PAGE)
        assert answer.headers["access-control-allow-origin"] == PAGE
        preflight = await client.ask("OPTIONS", "/v1/chat/completions", headers={"origin": PAGE})
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, PAGE)
        assert "authorization" in preflight.headers["access-control-allow-headers"]


async def test_with_a_key_nobody_asks_without(open_town: OpenTown, open_client: OpenClient) -> None:
    async with open_town() as town, open_client(await town.peer("alice"), host="0.0.0.0", key=KEY) as client:
        for wrong in (
            {},
            {"authorization": f"Bearer {KEY}x"},
            {"authorization": KEY},
            {"authorization": "Bearer "},
        ):
            refused = await client.get("/metrics", **wrong)
            assert (refused.status, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await client.get("/metrics", host="my.machine", authorization=f"Bearer {KEY}")).status == 200
        assert (await client.get("/healthz")).status == 200


async def test_what_nobody_reads_is_read_to_its_end(open_town: OpenTown, open_client: OpenClient) -> None:
    async with open_town() as town, open_client(await town.peer("alice")) as client:
        for path in ("/nowhere", "/healthz"):
            answer = await client.post(path, {"a": "b" * 1000})
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert answer.status == (404 if path == "/nowhere" else 405)
        assert not client.cut
