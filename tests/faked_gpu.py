"""vLLM's own configuration of engines on GPUs that are not there: ``python faked_gpu.py CASES``, each a name, GiB, file of settings
and overrides in JSON; a line of JSON out for each."""

from __future__ import annotations

import json
import sys
import types

sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("kernels")  # the CPU build has none
import vllm.platforms  # noqa: E402
from vllm.platforms.cuda import NonNvmlCudaPlatform  # noqa: E402
from vllm.platforms.interface import DeviceCapability  # noqa: E402


class FakedGpu(NonNvmlCudaPlatform):
    faked = ("", 0)

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:
        return cls.faked[0]

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:
        return cls.faked[1] << 30

    @classmethod
    def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
        return DeviceCapability(9, 0)

    @classmethod
    def device_count(cls) -> int:
        return 8


def main() -> None:
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from divray.config import load_config
    from divray.engines.vllm import engine_arguments
    from divray.models import local_model

    for name, memory, file, overrides in json.loads(sys.argv[1]):
        FakedGpu.faked = (name, memory)
        config = load_config(file, overrides)
        arguments = engine_arguments(config, gpu=True)
        made = AsyncEngineArgs(model=local_model(config.models.llm), **arguments).create_engine_config(UsageContext.LLM_CLASS)
        found = {
            "device": made.device_config.device_type,
            "max_num_seqs": made.scheduler_config.max_num_seqs,
            "max_num_batched_tokens": made.scheduler_config.max_num_batched_tokens,
            "max_model_len": made.model_config.max_model_len,
            "backend": made.parallel_config.distributed_executor_backend,
            "world_size": made.parallel_config.world_size,
            "lora_rank": made.lora_config.max_lora_rank,
            "trust": made.model_config.trust_remote_code,
            "dtype": str(made.model_config.dtype),
            "memory": made.cache_config.gpu_memory_utilization,
        }
        print(json.dumps(found), flush=True)


vllm.platforms.current_platform = FakedGpu()
if __name__ == "__main__":
    main()
