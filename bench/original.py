"""The training step of karpathy/autoresearch, timed: its own train.py, run in memory.

bench/training.py starts this with an interpreter that has torch, and hands it a job as JSON on
standard input. The script runs as it stands, except that

- `prepare` hands out random tokens, and ends the training when it was long enough;
- the constants that the job names have the job's values;
- on a CPU "cuda" reads "cpu", and in float32 bfloat16 reads float32;
- attention is torch's own within the same window, on a CPU, and on a GPU where the job says so: the
  original downloads its kernel (FlashAttention 3) when it starts, which takes a network.

Needs torch and numpy, and for the original's own attention kernels: its environment has them.
"""

import ast
import contextlib
import io
import json
import resource
import sys
import types
import warnings
from pathlib import Path

import numpy as np

WARMUP_STEPS = 3  # not counted; the first compiles
LEAST_STEPS = 5  # that count, however long they take

# What the script must assign, import from `prepare` and import besides, to be the one known here.
READ = {"dt", "step", "train_loss_f", "num_params", "num_flops_per_token"}
SIZES = {"DEPTH", "ASPECT_RATIO", "HEAD_DIM", "DEVICE_BATCH_SIZE", "TOTAL_BATCH_SIZE"}
PREPARE = {"MAX_SEQ_LEN", "TIME_BUDGET", "Tokenizer", "make_dataloader", "evaluate_bpb"}
KERNELS = {"get_kernel"}


class Unrecognised(Exception):
    """The file is not the train.py that is known here."""


class Enough(Exception):
    """The training was long enough."""


def random_tokens(rows: int, seq_len: int, vocab_size: int) -> np.ndarray:
    """The tokens of every step, uint16 [rows, seq_len + 1]."""
    shape = (rows, seq_len + 1)
    return np.random.default_rng(0).integers(0, vocab_size, shape, dtype=np.uint16)


def enough(step_seconds: list[float], seconds: float) -> bool:
    """Whether these steps, the warm-up first, are worth a median."""
    counted = step_seconds[WARMUP_STEPS:]
    return len(counted) >= LEAST_STEPS and sum(counted) >= seconds


def parse(checkout: Path) -> ast.Module:
    """The script of a checkout.

    Raises:
      Unrecognised: it is not there, or not the one that is known here.
    """
    path = checkout / "train.py"
    try:
        tree = ast.parse(path.read_text(), str(path))
    except (OSError, ValueError) as error:
        raise Unrecognised(f"no train.py of karpathy/autoresearch there: {error}") from error

    def imported(module: str) -> set[str]:
        found = (n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == module)
        return {alias.name for node in found for alias in node.names}

    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    assigned = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    missing = {
        "an assignment of": (READ | SIZES) - assigned,
        "an import from prepare of": PREPARE - imported("prepare"),
        "an import from kernels of": KERNELS - imported("kernels"),
    }
    lacks = "; ".join(f"{what} {', '.join(sorted(of))}" for what, of in missing.items() if of)
    if lacks:
        raise Unrecognised(f"{path} is not the train.py that is known here: it lacks {lacks}")
    return tree


class Adapted(ast.NodeTransformer):
    """The script for a job."""

    def __init__(self, job: dict):
        self.constants = job["constants"]
        self.on_cpu = job["device"] == "cpu"
        self.in_float32 = job["dtype"] == "float32"

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        match node.targets:
            case [ast.Name(id=name)] if name in self.constants:
                node.value = ast.copy_location(ast.Constant(self.constants[name]), node.value)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self.on_cpu and node.value == "cuda":
            return ast.copy_location(ast.Constant("cpu"), node)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if self.in_float32 and node.attr == "bfloat16":
            is_dtype = isinstance(node.value, ast.Name) and node.value.id == "torch"
            node.attr = "float32" if is_dtype else "float"
        return self.generic_visit(node)


def attention_module(on_gpu: bool) -> types.ModuleType:
    """Stands in for `kernels`, with what torch brings."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    def flash_attn_func(q, k, v, causal, window_size):
        assert causal
        T, window = q.shape[1], window_size[0]
        local = window < T
        if on_gpu and local:  # FlashAttention 2
            return torch.ops.aten._flash_attention_forward(
                q, k, v, None, None, T, T, 0.0, True, False,
                window_size_left=window, window_size_right=0,
            )[0]  # fmt: skip
        if on_gpu:
            with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
                q, k, v = (x.transpose(1, 2) for x in (q, k, v))
                y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return y.transpose(1, 2)
        mask = torch.ones(T, T, dtype=torch.bool).tril().triu(-window) if local else None
        y = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask, is_causal=not local
        )
        return y.transpose(1, 2)

    module, kernel = types.ModuleType("kernels"), types.ModuleType("flash_attn_interface")
    kernel.flash_attn_func = flash_attn_func
    module.get_kernel = lambda repo: types.SimpleNamespace(flash_attn_interface=kernel)
    return module


def prepare_module(job: dict, script: dict, steps: list[tuple[float, float]]) -> types.ModuleType:
    """Stands in for `prepare`, and adds seconds and loss of each step of `script` to `steps`."""
    import torch

    class Tokenizer:
        @classmethod
        def from_directory(cls):
            return cls()

        def get_vocab_size(self):
            return job["vocab_size"]

    def make_dataloader(tokenizer, rows, seq_len, split):
        tokens = random_tokens(script["TOTAL_BATCH_SIZE"] // seq_len, seq_len, job["vocab_size"])
        tokens = torch.from_numpy(tokens.astype(np.int64)).to(script["device"])
        batches = [(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in tokens.split(rows)]
        while True:
            for x, y in batches:
                if script.get("step", 0) > len(steps):
                    steps.append((script["dt"], script["train_loss_f"]))
                    if enough([seconds for seconds, _ in steps], job["seconds"]):
                        raise Enough
                yield x, y, 1

    module = types.ModuleType("prepare")
    module.MAX_SEQ_LEN, module.TIME_BUDGET = job["seq_len"], 300
    module.Tokenizer, module.make_dataloader = Tokenizer, make_dataloader
    module.evaluate_bpb = None  # it never gets there
    return module


def measure(job: dict) -> dict:
    """The seconds of each step that counts, and what shows that it is the same work.

    Raises:
      Unrecognised: the script is not the one that is known here.
    """
    tree = ast.fix_missing_locations(Adapted(job).visit(parse(Path(job["original"]))))
    import torch

    on_gpu = job["device"] == "gpu"
    if not on_gpu:
        torch.cuda.get_device_capability = lambda: (9, 0)
        torch.cuda.synchronize = lambda: None
    if job["attention"] == "torch":
        sys.modules["kernels"] = attention_module(on_gpu)
    script = types.ModuleType("original_train")
    steps: list[tuple[float, float]] = []
    sys.modules |= {
        "original_train": script,  # where dataclasses look for it
        "prepare": prepare_module(job, vars(script), steps),
    }
    warnings.filterwarnings("ignore", "In CPU autocast")  # float32 is no autocast: so it is meant
    path = str(Path(job["original"], "train.py"))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(Enough):
        exec(compile(tree, path, "exec"), vars(script))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    seconds, losses = zip(*steps, strict=True)
    return {
        "step_seconds": seconds[WARMUP_STEPS:],
        "compile_seconds": seconds[0],
        "first_loss": losses[0],
        "num_params": script.num_params,
        "flops_per_token": script.num_flops_per_token,
        "tokens_per_step": script.TOTAL_BATCH_SIZE,
        "peak_mb": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resident,
        "device_kind": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {"torch": torch.__version__},
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
