"""What servers of others send as a streamed chat, byte for byte in their own manner; the texts are shortened.

That of `transformers serve` 5.24 was recorded, of a Llama of some thousand weights. The others are taken down
from Ollama 0.40, vLLM 0.11, llama-server b6881 and an older one, LM Studio 0.3 and OpenRouter, as their
sources, issues and logs show them.
"""

from __future__ import annotations

_OLLAMA = b'"id":"chatcmpl-140","object":"chat.completion.chunk","created":1768062791,"model":"qwen3:8b",'
_OLLAMA += b'"system_fingerprint":"fp_ollama"'

OLLAMA = (
    b"data: {"
    + _OLLAMA
    + b',"choices":[{"index":0,"delta":{"role":"assistant","content":"","reasoning":"Okay"},'
    b'"finish_reason":null}],"usage":null}\n\n'
    b"data: {" + _OLLAMA + b',"choices":[{"index":0,"delta":{"role":"assistant",'
    b'"content":"Gr\\u00fc\\u00dfe"},"finish_reason":null}],"usage":null}\n\n'
    b"data: {" + _OLLAMA + b',"choices":[{"index":0,"delta":{"role":"assistant","content":"",'
    b'"tool_calls":[{"id":"call_mmmf8pcj","index":0,"type":"function","function":{"name":"weather",'
    b'"arguments":"{\\"city\\":\\"Hilo\\"}"}}]},"finish_reason":null}],"usage":null}\n\n'
    b"data: {" + _OLLAMA + b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
    b'"finish_reason":"tool_calls"}],"usage":null}\n\n'
    b"data: {"
    + _OLLAMA
    + b',"choices":[],"usage":{"prompt_tokens":22,"completion_tokens":73,"total_tokens":95}}\n\n'
    b"data: [DONE]\n\n"
)

_VLLM = b'"id":"chatcmpl-bb111f1751887699","object":"chat.completion.chunk","created":1787679386,'
_VLLM += b'"model":"Qwen/Qwen2.5-0.5B-Instruct"'

VLLM = (
    b"data: {" + _VLLM + b',"choices":[{"index":0,"delta":{"role":"assistant","content":""},'
    b'"logprobs":null,"finish_reason":null}],"prompt_token_ids":null}\n\n'
    b"data: {" + _VLLM + b',"choices":[{"index":0,"delta":{"content":"OK"},"logprobs":{"content":['
    b'{"token":"OK","logprob":-0.0123,"bytes":[79,75],"top_logprobs":[]}]},"finish_reason":null,"token_ids":null}]}\n\n'
    b"data: {" + _VLLM + b',"choices":[{"index":0,"delta":{"content":""},"logprobs":null,'
    b'"finish_reason":"stop","stop_reason":null,"token_ids":null}]}\n\n'
    b"data: {" + _VLLM + b',"choices":[],"usage":{"prompt_tokens":35,"total_tokens":37,"completion_tokens":2,'
    b'"prompt_tokens_details":null}}\n\n'
    b"data: [DONE]\n\n"
)
VLLM_ERROR = (
    b"data: {" + _VLLM + b',"choices":[{"index":0,"delta":{"content":"O"},"finish_reason":null}]}\n\n'
    b'data: {"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,'
    b'"code":500}}\n\n'
    b"data: [DONE]\n\n"
)

_LLAMA = b'"created":1762593253,"id":"chatcmpl-DHvcEyFobkuV4Xu1QSYo4bqNv18TDqaA","model":"gpt-oss:120b",'
_LLAMA += b'"system_fingerprint":"b6881-8b11deea4","object":"chat.completion.chunk"'

LLAMA = (  # the first content is null, and reasoning has a name of its own
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"role":"assistant","content":null}}],'
    + _LLAMA
    + b"}\n\n"
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"reasoning_content":"We"}}],'
    + _LLAMA
    + b"}\n\n"
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hi"}}],' + _LLAMA + b"}\n\n"
    b'data: {"choices":[{"finish_reason":"stop","index":0,"delta":{}}],' + _LLAMA + b"}\n\n"
    b'data: {"choices":[],' + _LLAMA + b',"usage":{"completion_tokens":247,"prompt_tokens":1085,'
    b'"total_tokens":1332},"timings":{"prompt_n":1085,"prompt_ms":203.378,"predicted_n":247,'
    b'"predicted_per_second":264.5587652496171}}\n\n'
    b"data: [DONE]\n\n"
)
LLAMA_OLD_ERROR = (  # before 2025 a field of its own name, which the format does not know
    b'data: {"choices":[{"finish_reason":null,"index":0,"delta":{"content":"Hi"}}],' + _LLAMA + b"}\n\n"
    b'error: {"code":500,"message":"Context size has been exceeded.","type":"server_error"}\n\n'
    b"data: [DONE]\n\n"
)

LM_STUDIO = (  # the usage rides on the last choice; an error is an event with a name
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"qwen2.5-7b-instruct-1m",'
    b'"system_fingerprint":"qwen2.5-7b-instruct-1m","choices":[{"index":0,"delta":{"role":"assistant",'
    b'"content":"Hey"},"logprobs":null,"finish_reason":null}]}\n\n'
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"qwen2.5-7b-instruct-1m",'
    b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":9,'
    b'"completion_tokens":1,"total_tokens":10}}\n\n'
    b"data: [DONE]\n\n"
)
LM_STUDIO_ERROR = b'event: error\ndata: {"error":{"message":"The model has crashed. (Exit code: 6)"}}\n\n'

OPEN_ROUTER = (  # comments while nothing comes; CRLF, no space and no last empty line, as proxies make of it
    b": OPENROUTER PROCESSING\r\n\r\n: OPENROUTER PROCESSING\r\n\r\n"
    b'data:{"id":"gen-1","provider":"X","model":"a/b","object":"chat.completion.chunk","created":1,'
    b'"choices":[{"index":0,"delta":{"role":"assistant","content":"Yes"},"finish_reason":null,'
    b'"native_finish_reason":null,"logprobs":null}]}\r\n\r\n'
    b'data:{"id":"gen-1","choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}\r\n\r\n'
    b'data:{"id":"gen-1","choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\r\n'
    b"\r\ndata:[DONE]"
)

_SERVE = b'"created":1795985420,"model":"tiny-llama","object":"chat.completion.chunk","system_fingerprint":""'

TRANSFORMERS = (  # the usage rides on the last choice, and no [DONE] follows
    b'data: {"id":"ab3e4d76-7c4e-4202-9f78-39611ba5ad08","choices":[{"delta":{"role":"assistant"},'
    b'"index":0}],' + _SERVE + b"}\n\n"
    b'data: {"id":"ab3e4d76-7c4e-4202-9f78-39611ba5ad08","choices":[{"delta":{"content":" w"},'
    b'"index":0}],' + _SERVE + b"}\n\n"
    b'data: {"id":"ab3e4d76-7c4e-4202-9f78-39611ba5ad08","choices":[{"delta":{"content":" th"},'
    b'"index":0}],' + _SERVE + b"}\n\n"
    b'data: {"id":"ab3e4d76-7c4e-4202-9f78-39611ba5ad08","choices":[{"delta":{},"index":0,'
    b'"finish_reason":"length"}],' + _SERVE + b',"usage":{"completion_tokens":2,"prompt_tokens":11,'
    b'"total_tokens":13}}\n\n'
)

STREAMS = (TRANSFORMERS, OLLAMA, VLLM, LLAMA, LM_STUDIO, OPEN_ROUTER)
