"""What a caller may say to a server behind a model; how addresses are written, and names made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import check_model_name
from modelnet_p2p.node.serving.upstream.address import Address, is_address, served_name, told_apart
from modelnet_p2p.node.serving.upstream.http import key_of
from modelnet_p2p.node.serving.upstream.requests import Kind, embedding_texts, text_request

MESSAGES = [{"role": "user", "content": "Hi"}]


def test_a_text_is_a_user_s_message_or_a_prompt() -> None:
    request = text_request("Hi", {"max_tokens": 3}, Kind.CHAT)
    assert (request.kind, request.fields, request.plain) == (
        Kind.CHAT,
        {"messages": MESSAGES, "max_tokens": 3},
        True,
    )
    request = text_request("Hi", {}, Kind.COMPLETION)
    assert (request.kind, request.fields) == (Kind.COMPLETION, {"prompt": "Hi"})


def test_openai_s_fields_pass_and_those_of_the_account_are_left_out() -> None:
    body = {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "json_object"},
        "logprobs": True,
        "stop": None,
    }
    ours = {"model": "other", "stream": False, "stream_options": {}, "n": 1, "user": "me", "store": True}
    request = text_request({**body, **ours}, {"temperature": 0.5}, Kind.CHAT)
    assert request.fields == {**{k: v for k, v in body.items() if v is not None}, "temperature": 0.5}
    assert not request.plain
    assert text_request({"prompt": "x"}, {}, Kind.CHAT).kind is Kind.COMPLETION


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"messages": MESSAGES, "chat_template": "{{ evil }}"}, "'chat_template'"),
        ({"messages": MESSAGES, "extra_headers": {}}, "'extra_headers'"),
        ({"messages": MESSAGES, "n": 2}, "`n` is 1"),
        ({"messages": MESSAGES, "prompt": "x"}, "either"),
        ({"temperature": 1}, "either"),
        ({"messages": []}, "list of messages"),
        ({"messages": ["x"]}, "a map"),
        ({"prompt": 7}, "a text"),
        (7, "takes a text"),
        (None, "takes a text"),
    ],
)
def test_other_fields_are_refused_by_name(value: object, words: str) -> None:
    with pytest.raises(LocalError, match=words) as caught:
        text_request(value, {}, Kind.CHAT)
    assert caught.value.code is Code.BAD_INPUT


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "image_url", "image_url": "https://example.org/x.png"},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
        {"type": "text", "text": "x", "image_url": {"url": "http://10.0.0.1/"}},
        {"type": "image_url", "Image_URL": {"url": "http://10.0.0.1/"}},
        {"type": "image_url", "image_url": {"url": "data:,", "URL": "http://10.0.0.1/"}},
        {"type": "image_embeds", "image_embeds": "gASV"},
        {"type": "file", "file": {"file_id": "f1"}},
        {"type": "input_image", "image_url": "http://x/"},
        {},
        7,
    ],
)
def test_nothing_is_fetched_for_a_caller(part: object) -> None:
    with pytest.raises(LocalError):
        text_request({"messages": [{"role": "user", "content": [part]}]}, {}, Kind.CHAT)


@pytest.mark.parametrize("model", ["llama3.2:1b", "a%41b", "100%", "a#b", "/m/x y.gguf"])
def test_a_model_is_meant_by_its_very_name(model: str) -> None:
    address = Address("http", "box", 80, "/v1", model)
    assert Address.parse(address.spec) == address


def test_content_is_looked_at_however_it_is_written() -> None:
    part = {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}}
    for message in ({"role": "user", "content": part}, {"role": "user", "Content": [part]}):
        with pytest.raises(LocalError):
            text_request({"messages": [message]}, {}, Kind.CHAT)


def test_a_picture_in_the_message_passes() -> None:
    content = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    value = {"messages": [{"role": "user", "content": content}]}
    assert text_request(value, {}, Kind.CHAT).fields == value


def test_texts_for_vectors() -> None:
    assert embedding_texts("a", {}) == (["a"], {})
    assert embedding_texts(["a", "b"], {"dimensions": 8}) == (["a", "b"], {"dimensions": 8})
    assert embedding_texts({"input": "a", "encoding_format": "base64", "model": "x"}, {}) == (["a"], {})
    for wrong in ([], [1], {}, 7, None, ["a"] * 3000, {"input": "a", "x": 1}):
        with pytest.raises(LocalError):
            embedding_texts(wrong, {})


@pytest.mark.parametrize(
    ("spec", "base", "model"),
    [
        ("http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1", ""),
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434/v1", ""),
        ("HTTP://LocalHost:80/v1/", "http://localhost/v1", ""),
        ("https://api.example.com/openai/v1#gpt-4o", "https://api.example.com/openai/v1", "gpt-4o"),
        ("http://[::1]:8000/v1#a/b:c%23d", "http://[::1]:8000/v1", "a/b:c#d"),
    ],
)
def test_addresses_have_one_way_to_be_written(spec: str, base: str, model: str) -> None:
    address = Address.parse(spec)
    assert (address.base, address.model) == (base, model)
    assert Address.parse(address.base) == Address.parse(base)
    assert is_address(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "http://",
        "http:///v1",
        "ftp://x/v1",
        "http://user:secret@host/v1",
        "http://sk-secret@host/v1",
        "http://host/v1?api_key=sk-secret",
        "http://host:99999/v1",
        "http://host:x/v1",
        "http://ho st/v1",
        "http://host/v1\r\nX: y",
        "http://host/ü",
        "http://host/v1#\x00",
        "http://host/v1#" + "x" * 201,
        "http://host/" + "x" * 300,
        "http://[::1/v1",
    ],
)
def test_what_is_no_address_is_refused_without_its_secrets(spec: str) -> None:
    with pytest.raises(LocalError) as caught:
        Address.parse(spec)
    if "secret" in spec:
        assert "secret" not in caught.value.message + caught.value.hint


@given(st.text(max_size=60))
def test_no_text_makes_an_address_that_reads_back_as_another(text: str) -> None:
    try:
        address = Address.parse(f"http://{text}")
    except LocalError:
        return
    assert Address.parse(address.base).base == address.base


@pytest.mark.parametrize(
    ("upstream", "name"),
    [
        ("llama3.2:1b", "llama3.2-1b"),
        ("nomic-embed-text:latest", "nomic-embed-text"),
        ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/llama-3.2-1b-instruct"),
        ("hf.co/bartowski/Llama-3.2-1B-GGUF:Q4_K_M", "bartowski/llama-3.2-1b-gguf-q4_k_m"),
        ("/models/qwen2.5-0.5b-instruct-q4_k_m.gguf", "qwen2.5-0.5b-instruct-q4_k_m"),
        ("./phi.gguf", "phi"),
        (r"C:\models\Phi 3.gguf", "phi-3"),
        ("/", "model-8a5eda"),
        ("模型", "model-c98e11"),
    ],
)
def test_names_of_servers_become_names_of_ours(upstream: str, name: str) -> None:
    assert served_name(upstream) == check_model_name(name)


@given(st.text(min_size=1, max_size=200))
def test_every_name_becomes_a_valid_one_that_can_be_told_apart(text: str) -> None:
    name = check_model_name(served_name(text))
    assert check_model_name(told_apart(name, text)) != name


def test_a_key_for_openai_is_not_sent_in_clear_over_a_network() -> None:
    both = {"OPENAI_API_KEY": "sk-1", "MODELNET_UPSTREAM_KEY": "k2"}
    openai = {"OPENAI_API_KEY": "sk-1\n"}
    here, secure, clear = (
        Address.parse(spec) for spec in ("http://127.0.0.1:1/v1", "https://x/v1", "http://10.0.0.7/v1")
    )
    assert key_of(here, both) == ("k2", "MODELNET_UPSTREAM_KEY")
    assert key_of(here, openai) == key_of(secure, openai) == ("sk-1", "OPENAI_API_KEY")
    assert key_of(clear, openai) == ("", "")
    assert key_of(clear, both) == ("k2", "MODELNET_UPSTREAM_KEY")
    assert key_of(here, {"OPENAI_API_KEY": " "}) == ("", "")
    with pytest.raises(LocalError) as caught:
        key_of(here, {"OPENAI_API_KEY": "a\r\nX-Evil: 1"})
    assert "Evil" not in caught.value.message
