"""Models of servers that speak OpenAI's HTTP API: Ollama, vLLM, llama-server, LM Studio, and many more."""
