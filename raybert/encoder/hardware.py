"""What a machine can do, found out without torch."""


def cpu_has_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Does this CPU have AMX or AVX-512 instructions for bfloat16? (Without them it is slower than float32.)"""
    try:
        with open(cpuinfo) as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        return False
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags.split())
