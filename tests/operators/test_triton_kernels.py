"""The Triton kernels: run in a process of their own, and compiled for GPUs that need not be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskunet.operators import triton_launch

CASES = Path(__file__).with_name("triton_cases.py")
INTERPRETED = {"TRITON_INTERPRET": "1"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=given, check=False)


def test_against_plain_torch() -> None:
    pytest.importorskip("triton")
    # The interpreter is chosen once in a process, and the tests of torch.compile must not have it.
    environment = {} if torch.cuda.is_available() else INTERPRETED
    done = run("-m", "pytest", "--noconftest", "-p", "no:cacheprovider", str(CASES), **environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_kernels_are_imported_on_first_use() -> None:
    code = "import sys, maskunet; from maskunet.operators.triton_launch import available; available('cpu'); "
    done = run("-c", code + "print([m for m in sys.modules if m.endswith('triton_kernels')])")
    assert done.stdout.strip() == "[]", done.stderr


def test_available_only_on_a_gpu_or_in_the_interpreter() -> None:
    assert not triton_launch.available("meta")
    code = "import sys; sys.modules['triton'] = None; from maskunet.operators.triton_launch import available; "
    done = run("-c", code + "print(available('cuda'), available('cpu'))", **INTERPRETED)
    assert done.stdout.strip() == "False False", done.stderr


FLOATS = {"*bf16": torch.bfloat16, "*fp16": torch.float16, "*fp32": torch.float32}


@pytest.mark.parametrize(
    ("number", "rank", "flags"),
    [
        ("*bf16", 16, {"TRANSPOSED": False}),
        ("*bf16", 32, {"TRANSPOSED": True, "NOISE": True}),
        ("*fp16", 0, {"TRANSPOSED": False, "PACKED": True}),
        ("*fp32", 40, {"TRANSPOSED": True}),
        ("*bf16", 16, {"TRANSPOSED": True}),
        ("*bf16", 32, {"ATOMIC": False, "NOISE": True}),
        ("*fp32", 16, {"ATOMIC": True}),
    ],
)
def test_compiles_for_a_gpu(
    number: str, rank: int, flags: dict[str, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler refuses what the interpreter lets pass; 99 KiB is the least shared memory of the GPUs of compute 8."""
    triton = pytest.importorskip("triton", minversion="3.3")
    compiler = pytest.importorskip("triton.backends.compiler")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        pytest.skip("the interpreter compiles nothing")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from maskunet.operators import triton_kernels

    product = "TRANSPOSED" in flags
    kernel = triton_kernels.product if product else triton_kernels.factor_gradients
    options: dict[str, Any] = {"RANK": rank, "NOISE": False, "PACKED": False, "BIASED": True} | flags
    options |= {"LEFT": True, "RIGHT": True, "ROW": True}
    options |= (
        triton_launch.product_tiles(4096, rank, FLOATS[number], flags["TRANSPOSED"])
        if product
        else triton_launch.gradient_tiles(rank)
    )
    types = dict.fromkeys(("a", "x", "grad", "weight", "bias", "out"), number)
    types |= dict.fromkeys(("left", "right", "row", "grad_left", "grad_right", "grad_row"), "*fp32")
    types |= {"seeds": "*i64", "packed": "*u8", "tau": "fp32"}
    names = kernel.arg_names
    signature = {name: "constexpr" if name in options else types.get(name, "i32") for name in names}
    constants = {(k,): options[name] for k, name in enumerate(names) if name in options}
    launch = {name: options[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=constants)
    built = triton.compile(source, target=compiler.GPUTarget("cuda", 80, 32), options=launch)
    assert built.metadata.shared <= 99 * 1024
    assert ("mma.sync" in built.asm["ptx"]) == (number != "*fp32")
