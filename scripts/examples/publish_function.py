"""Serve a function of this very file to the network, and call it, as anybody else may.

    .venv/bin/python scripts/examples/publish_function.py

The function runs in a worker process, which imports this file: so what acts stands under `__main__`.
"""

from modelnet_p2p import Swarm


def shout(text: str, mark: str = "!") -> str:
    return text.upper() + mark


if __name__ == "__main__":
    with Swarm.open() as swarm:
        swarm.publish(shout, task="text2text-generation")
        print(swarm.invoke("shout", "hello, world", params={"mark": "?"}))
