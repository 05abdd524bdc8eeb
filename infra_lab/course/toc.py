"""The sections of the course, in order. Chinese titles are the chapter's own."""

from dataclasses import dataclass
from typing import Literal

Tier = Literal["CPU", "CPU, GPU adds more"]
_GPU: Tier = "CPU, GPU adds more"


@dataclass(frozen=True, slots=True)
class Section:
    """One lesson."""

    number: str
    slug: str
    """File name without its ending; the same for lesson, exercise and solution."""
    folder: str
    """Below the labs folder; empty for the first lesson."""
    title: str
    chinese: str
    outcome: str
    """Completes "After this you can ..."."""
    minutes: int
    tier: Tier = "CPU"

    @property
    def path(self) -> str:
        """The lesson's path as the claims ledger writes it."""
        return "/".join(part for part in ("labs", self.folder, f"{self.slug}.ipynb") if part)

    @property
    def claims_section(self) -> str:
        """The section of the ledger: lessons that share a chapter section (3.4a, 3.4b) share its claims."""
        return self.number.rstrip("abc")


_1 = "01_inference_and_infra"
_2 = "02_hardware"
_3 = "03_runtime_and_engines"
_4 = "04_parallelism_and_memory"
_5 = "05_serving"
_6 = "06_end_to_end"
_7 = "07_capstone"

CHAPTERS: dict[str, tuple[str, str]] = {
    "": ("Start", "开始"),
    _1: ("1. Inference and infrastructure", "推理与 AI Infra 关系"),
    _2: ("2. Hardware", "硬件基础"),
    _3: ("3. Runtime and engines", "运行时与推理引擎"),
    _4: ("4. Parallelism and memory", "并行与内存管理"),
    _5: ("5. Serving and orchestration", "服务化与编排"),
    _6: ("6. From request to reply", "推理全流程优化"),
    _7: ("7. Putting it together", "小结与思考"),
}
"""Title and Chinese title of each chapter, by its folder."""

SECTIONS: tuple[Section, ...] = (
    Section("0", "00_start_here", "", "Start here", "从这里开始",
            "run the engine, read one of its steps, and use every tool of the lessons", 20),
    Section("1.1", "1_1_into_production", _1, "Inference goes into production", "推理 AI 走向生产",
            "price a token and say when serving costs more than training did", 30),
    Section("1.2", "1_2_inference_vs_training", _1, "How inference differs from training", "推理与训练差异",
            "say which resource binds a training step, a prefill and a decode", 30),
    Section("1.3", "1_3_full_stack", _1, "Hardware and software as one stack", "软硬件全栈协同",
            "find the layer that holds back an inference service", 35),
    Section("2.1", "2_1_chips", _2, "How the chips differ", "计算芯片间差异",
            "place a model on a chip's roofline and predict its speed", 45, _GPU),
    Section("2.2", "2_2_interconnect", _2, "Interconnects and parallel inference", "互连对并行推理影响",
            "work out what a link costs each token under tensor and pipeline parallelism", 45, _GPU),
    Section("2.3", "2_3_storage", _2, "Storage for models and caches", "存储对模型和 Cache 影响",
            "choose a storage tier for weights and KV blocks by its bandwidth", 40, _GPU),
    Section("2.4", "2_4_network", _2, "The network and its cards", "网络与网卡",
            "size the network of a cluster that serves one model", 40),
    Section("3.1", "3_1_operator_libraries", _3, "Kernel libraries", "算子加速库",
            "read a fused kernel and predict what it saves", 60, _GPU),
    Section("3.2", "3_2_engines", _3, "Inference engines compared", "推理引擎对比",
            "name what an engine does beyond the model, and measure each part", 50, _GPU),
    Section("3.3", "3_3_compilation", _3, "Compilation", "编译优化",
            "fuse a graph and count the launches and bytes that go away", 45, _GPU),
    Section("3.4a", "3_4a_quantization", _3, "Model compression: quantization", "模型压缩：低比特量化",
            "quantize a layer and predict its size, speed and error", 60, _GPU),
    Section("3.4b", "3_4b_distillation", _3, "Model compression: distillation", "模型压缩：蒸馏",
            "train a small model on a large one's distribution and measure what it keeps", 45),
    Section("3.4c", "3_4c_pruning", _3, "Model compression: structured pruning", "模型压缩：结构化剪枝",
            "remove heads and layers and measure what is lost and gained", 45),
    Section("4.1", "4_1_parallelism", _4, "Data and model parallelism", "数据 vs MP",
            "choose a parallel layout for a model and prove that it computes the same", 50, _GPU),
    Section("4.2", "4_2_kv_cache", _4, "KV cache: management and tiers", "KV Cache 管理与分层存储",
            "say how many requests fit into a memory, and why pages make it more", 45, _GPU),
    Section("4.3", "4_3_offload_and_distributed_kv", _4, "Activation offload and distributed KV",
            "激活 Offload 与分布式 KV", "decide what may leave the GPU and when it must be back", 50, _GPU),
    Section("4.4", "4_4_moe", _4, "MoE routing and load balance", "MoE 路由与负载均衡",
            "route tokens to experts and measure what imbalance costs", 50, _GPU),
    Section("5.1", "5_1_deployment", _5, "Ways to deploy", "部署方式",
            "choose between one model an instance, several, and a sharded one", 40),
    Section("5.2", "5_2_scheduling", _5, "Scheduling instances", "调度策略",
            "hold a latency goal through a peak with warm pools, scaling and priorities", 50),
    Section("5.3", "5_3_frameworks", _5, "Serving frameworks compared", "服务化框架对比",
            "serve the engine behind a standard protocol and say what a framework adds", 45),
    Section("5.4", "5_4_routing_and_sla", _5, "Request routing and SLAs", "请求路由与 SLA",
            "route requests so that the 99th percentile holds", 50),
    Section("6.1", "6_1_preprocessing", _6, "Preprocessing", "数据预处理",
            "measure tokenizing against computing, and cache what repeats", 35),
    Section("6.2", "6_2_prefill_decode_split", _6, "Splitting prefill from decode", "PD 分离执行",
            "move a request's KV between workers and say when that pays", 60, _GPU),
    Section("6.3a", "6_3a_dynamic_batching", _6, "Dynamic batching", "动态 Batch",
            "trade throughput against latency with the batch's size and wait", 50, _GPU),
    Section("6.3b", "6_3b_token_parallel", _6, "Token parallelism", "Token 并行",
            "split one long sequence over devices and merge its attention exactly", 50, _GPU),
    Section("6.4", "6_4_sampling_and_streaming", _6, "Sampling and streaming", "采样加速与输出流式化",
            "sample at the speed of a step and stream what a reader sees first", 45, _GPU),
    Section("7", "7_capstone", _7, "Capstone", "小结与思考",
            "tune the whole stack to a goal and defend every choice by a measurement", 120, _GPU),
)  # fmt: skip
