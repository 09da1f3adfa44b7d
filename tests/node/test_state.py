"""State and identity after a stop at every instruction of the disk, and after damage at every byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_disks import FullDisk, Stop, StoppingDisk
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import Disk, open_json, seal_json
from modelnet_p2p.node.disk.home import Home, decode_key, encode_key
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.records import MAX_SEQ

SOURCE = {"spec": "m:f", "environ": {"LANG": "C"}}


def stopped_everywhere(act: Callable[[Disk], None], check: Callable[[], None], *, seed: int = 1) -> int:
    """Run `act` with a stop at each operation, `check` what is left each time; how many stops there were."""
    for at in range(500):
        disk = StoppingDisk(at, random.Random(seed * 1000 + at))
        try:
            act(disk)
        except Stop:
            check()
            continue
        check()
        return at
    raise AssertionError("it never got through")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def test_the_key_is_made_once_for_its_owner_alone(home: Home) -> None:
    key = home.load_or_make_key()
    assert home.load_or_make_key().id == key.id
    assert home.key_path.stat().st_mode & 0o777 == 0o600
    assert home.path.stat().st_mode & 0o777 == 0o700


def test_a_stop_while_the_key_is_made_leaves_none_or_a_whole_one(home: Home) -> None:
    def check() -> None:
        key = home.load_key()
        if key is not None:
            assert home.load_or_make_key().id == key.id
            home.key_path.unlink()

    def make(disk: Disk) -> None:
        home.load_or_make_key(disk=disk)

    assert stopped_everywhere(make, check) >= 5
    assert [path.name for path in home.path.iterdir()] == []


def test_a_damaged_key_is_named_and_never_made_anew(home: Home) -> None:
    home.load_or_make_key()
    good = home.key_path.read_bytes()
    damaged = [good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :] for i in range(len(good))]
    for data in [*damaged, *(good[:n] for n in range(len(good))), good + b"x"]:
        home.key_path.write_bytes(data)
        with pytest.raises(LocalError, match=str(home.key_path)) as caught:
            home.load_or_make_key()
        assert caught.value.code is Code.BAD_STATE
        assert "\n" not in caught.value.message
        assert home.key_path.read_bytes() == data


def test_a_key_that_others_may_read_is_refused(home: Home) -> None:
    home.load_or_make_key()
    home.key_path.chmod(0o644)
    with pytest.raises(LocalError, match="other users") as caught:
        home.load_key()
    assert caught.value.hint == f"chmod 600 {home.key_path}"


@pytest.mark.parametrize("put", [Path.mkdir, lambda path: path.symlink_to("/nowhere/at/all")])
def test_something_else_in_the_place_of_the_key(home: Home, put: Callable[[Path], None]) -> None:
    home.path.mkdir()
    put(home.key_path)
    with pytest.raises(LocalError, match=r"identity\.key"):
        home.load_or_make_key()


def test_a_lost_key_beside_remembered_state_is_not_made_anew(home: Home) -> None:
    home.load_or_make_key()
    State.open(home).remember("m", SOURCE, 1)
    home.key_path.unlink()
    with pytest.raises(LocalError, match="missing"):
        home.load_or_make_key()


@given(st.binary(max_size=100))
def test_no_bytes_are_mistaken_for_a_key(data: bytes) -> None:
    try:
        assert encode_key(decode_key(data)) == data
    except ValueError:
        pass


def test_what_a_model_turned_out_to_be_is_kept_with_it(home: Home) -> None:
    state = State.open(home)
    state.remember("a", SOURCE, 1, {"digest": "xyz"})
    state.remember("b", SOURCE, 2, {"digest": "abc"})
    state.remember("c", SOURCE, 3, {"digest": "def"})
    state.remember("b", SOURCE, 4)  # nothing is known of it any more
    state.drop("c")
    assert state.described == State.open(home).described == {"a": {"digest": "xyz"}}
    state.forget("a", 5, b"tombstone", 100)
    assert state.described == State.open(home).described == {}


def test_what_was_published_and_withdrawn_comes_back(home: Home) -> None:
    state = State.open(home)
    state.remember("acme/a@1", SOURCE, state.take_seq(1.0))
    state.remember("acme/b", SOURCE, state.take_seq(1.0))
    state.forget("acme/b", state.take_seq(1.0), b"tombstone", 50)
    again = State.open(home)
    assert again.published == {"acme/a@1": SOURCE}
    assert (again.withdrawn["acme/b"].envelope, again.withdrawn["acme/b"].expires_unix) == (b"tombstone", 50)
    assert (again.last_seq("acme/a@1"), again.last_seq("acme/b"), again.last_seq("c")) == (1000, 1002, 0)
    again.settle(49)
    assert "acme/b" in State.open(home).withdrawn
    again.settle(50)
    assert State.open(home).withdrawn == {}
    assert again.take_seq(0.0) == 1003


def test_sequence_numbers_never_go_back_wherever_it_stops(home: Home) -> None:
    given_out: list[int] = []

    def act(disk: Disk) -> None:
        state = State.open(home, disk=disk)
        for model in ("a", "b"):
            seq = state.take_seq(0.0)  # a clock that stands still must not matter
            given_out.append(seq)
            state.remember(model, SOURCE, seq)
        seq = state.take_seq(0.0)
        given_out.append(seq)
        state.forget("a", seq, b"t", 9)
        state.settle(10)

    for seed in range(5):
        stopped_everywhere(act, lambda: None, seed=seed)
    assert given_out == sorted(set(given_out))


def test_a_change_is_old_or_new_wherever_it_stops(home: Home) -> None:
    old, new = {**SOURCE, "spec": "old"}, {**SOURCE, "spec": "new" * 1000}
    State.open(home).remember("a", SOURCE, 3)

    def reset_and_check() -> None:
        state = State.open(home)
        assert state.published["a"] == SOURCE  # a neighbour is never touched
        assert state.published.get("b") in (None, old, new)
        state.remember("b", old, 5)

    def act(disk: Disk) -> None:
        State.open(home, disk=disk).remember("b", new, 6)

    assert stopped_everywhere(act, reset_and_check) >= 5
    assert not list(home.state_path.rglob("*.tmp"))


def test_damage_at_any_byte_is_one_line_that_names_the_file_and_spares_the_others(home: Home) -> None:
    state = State.open(home)
    state.remember("a", SOURCE, state.take_seq(1.0))
    state.remember("b", SOURCE, 1001)
    damaged = next((home.state_path / "models").glob("b.*"))
    for path in (damaged, home.state_path / "sequence.json"):
        good = path.read_bytes()
        flips = [good[:i] + bytes([good[i] ^ 0x20]) + good[i + 1 :] for i in range(len(good))]
        for data in [*flips, *(good[:n] for n in range(len(good)))]:
            path.write_bytes(data)
            with pytest.raises(LocalError) as caught:
                State.open(home)
            assert caught.value.code is Code.BAD_STATE
            assert str(path) in caught.value.message
            assert "\n" not in caught.value.message
        path.write_bytes(good)
    damaged.rename(f"{damaged}.damaged")  # as the hint says
    assert State.open(home).published == {"a": SOURCE}


def test_a_file_under_another_models_name_is_damage(home: Home) -> None:
    State.open(home).remember("a", SOURCE, 1)
    path = next((home.state_path / "models").iterdir())
    path.rename(path.with_name("b.00000000.json"))
    with pytest.raises(LocalError, match="another model"):
        State.open(home)


@given(st.binary(max_size=300) | st.binary(max_size=200).map(lambda body: seal_json({"x": body.hex()})))
def test_only_value_errors_leave_the_decoder(data: bytes) -> None:
    try:
        assert isinstance(open_json(data), dict)
    except ValueError:
        pass


def test_a_full_disk_keeps_what_was_there(home: Home) -> None:
    State.open(home).remember("a", SOURCE, 1)
    state = State.open(home, disk=FullDisk())
    with pytest.raises(LocalError, match="No space left"):
        state.remember("b", SOURCE, 2)
    with pytest.raises(LocalError, match="No space left"):
        state.take_seq(0.0)
    assert state.published == State.open(home).published == {"a": SOURCE}
    assert (state.last_seq("b"), list(home.state_path.rglob("*.tmp"))) == (0, [])


def test_models_that_differ_in_case_only_keep_apart(home: Home) -> None:
    state = State.open(home)
    state.remember("a@x", SOURCE, 1)
    state.remember("a@X", SOURCE, 2)
    names = {path.name.lower() for path in (home.state_path / "models").iterdir()}
    assert len(names) == 2


def test_peers_met_before_are_kept_and_a_damaged_file_is_named(home: Home) -> None:
    home.load_or_make_key()
    home.save_peers("lab", ["/ip4/1", "/ip4/2"])
    assert home.load_peers("lab") == ("/ip4/1", "/ip4/2")
    assert home.load_peers("public") == ()  # they are of another network
    for text in ("", "[]", "{", '{"a": 3}', "[" * 100000, '{"network": "lab", "addrs": {}}'):
        home.peers_path.write_text(text)
        with pytest.raises(LocalError, match=r"peers\.json") as caught:
            home.load_peers("lab")
        assert (caught.value.code, caught.value.hint) == (Code.BAD_STATE, f"rm {home.peers_path}")


def test_a_dropped_model_is_gone_and_its_number_is_not_given_out_again(home: Home) -> None:
    state = State.open(home)
    seq = state.take_seq(1.0)
    state.remember("me/words", {"spec": "mine:words"}, seq)
    state.drop("me/words")
    again = State.open(home)
    assert (again.published, again.withdrawn) == ({}, {})
    assert again.take_seq(1.0) > seq


def test_the_last_number_a_record_can_hold_is_the_last(home: Home) -> None:
    state = State.open(home)
    state.remember("a", SOURCE, MAX_SEQ)
    with pytest.raises(LocalError, match="the last one") as caught:
        state.take_seq(1.0)
    assert caught.value.code is Code.BAD_STATE
