"""The peer of ``benchmarks/sampling.py``'s ``http`` figure: datatrove's inference runner against a running server.

    PEER/bin/python http_peer.py PAYLOADS.jsonl http://127.0.0.1:PORT CONCURRENCY

Each line of the file is the body of one request to ``/v1/completions``.  Runs where ``datatrove`` is installed, with
``aiosqlite``, ``httpx`` and ``orjson``; the server is started by the caller.  Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.writers import JsonlWriter
from loguru import logger


def main(file: str, address: str, concurrency: int) -> dict[str, float]:
    payloads = [json.loads(line) for line in Path(file).read_text().splitlines()]
    times: list[tuple[float, float]] = []
    tokens = 0

    async def rollout(document: Document, generate: Any) -> Any:
        nonlocal tokens
        began = time.time()
        result = await generate(dict(payloads[int(document.id)]))
        times.append((began, time.time()))
        tokens += result.usage["completion_tokens"]
        return result

    with tempfile.TemporaryDirectory() as folder:
        runner = InferenceRunner(
            rollout_fn=rollout,
            config=InferenceConfig(
                server_type="endpoint",
                model_name_or_path="policy",
                use_chat=False,
                endpoint_url=address,
                max_concurrent_generations=concurrency,
                max_concurrent_documents=concurrency,
            ),
            output_writer=JsonlWriter(folder, output_filename="${rank}.jsonl", compression=None),
        )
        runner.run(Document(text="-", id=str(number)) for number in range(len(payloads)))
    seconds = max(end for _, end in times) - min(begin for begin, _ in times)
    return {"answers": len(times), "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}


if __name__ == "__main__":
    logger.remove()
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
