"""The allocator's settings: told once, and only where there is one that listens."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from star_cli.memory import available_bytes, is_out_of_memory

PAGE_FAULTS = """
import resource, sys
from star_cli import memory
told = memory.keep_pages()
block = 64 * 2**20
for _ in range(3):
    bytearray(block)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    bytearray(block)
print(told, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def told_and_faults(switch: str) -> tuple[str, int]:
    """Whether the allocator of a fresh process was told, and how often it faulted for 5 blocks of 64 MiB."""
    run = subprocess.run(
        [sys.executable, "-c", PAGE_FAULTS], env={"STAR_KEEP_PAGES": switch}, capture_output=True, text=True, check=True
    )
    told, faults = run.stdout.split()
    return told, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_pages_serve_the_next_block() -> None:
    told, faults = told_and_faults("1")
    if told == "False":
        pytest.skip("another C library")
    told_off, faults_off = told_and_faults("0")
    assert told_off == "False"
    assert faults < faults_off / 10


TOO_MUCH = """
import torch
from star_cli.memory import stay_within_memory
limit = stay_within_memory()
kept = torch.zeros(2**20)
try:
    torch.empty(limit, dtype=torch.uint8)
except RuntimeError as error:
    print("memory" in str(error))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_what_the_machine_has_no_memory_for_is_refused_at_once() -> None:
    run = subprocess.run([sys.executable, "-c", TOO_MUCH], env={}, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("error", "is_it"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1.2 GB)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("x"), False),
    ],
)
def test_out_of_memory_is_known(error: Exception, is_it: bool) -> None:
    assert is_out_of_memory(error) is is_it


@pytest.mark.parametrize(
    ("most", "used", "free"),
    [("8000", 7800, 4200), ("max", 7800, 9_000 * 1024), ("8000", 8100, 3900), ("3000", 7100, 0)],
)
def test_cached_files_are_free_memory(tmp_path: Path, most: str, used: int, free: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 10000 kB\nMemAvailable: 9000 kB\n")
    (tmp_path / "memory.max").write_text(f"{most}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    (tmp_path / "memory.stat").write_text("anon 3000\nfile 4900\ninactive_file 3500\nactive_file 500\n")
    assert available_bytes(tmp_path / "meminfo", tmp_path) == free


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path / "none", tmp_path) is None
